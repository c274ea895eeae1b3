"""Scores in a Ray Data pipeline.

from dali_aesthetic.integrations.ray_data import AestheticScorer

scored = ray.data.read_parquet("images/").map_batches(
    AestheticScorer, fn_constructor_kwargs={"image_column": "bytes"},
    batch_size=512, concurrency=8, num_gpus=1,
)
kept = scored.filter(expr="aesthetic_score >= 5.0")
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dali_aesthetic.integrations.batches import BatchScorer


class AestheticScorer(BatchScorer):
    """A callable class for `Dataset.map_batches`: each of its actors loads the model once.

    Takes the arguments of `BatchScorer`. The batch is in Ray's default format, columns as numpy arrays.
    """

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The batch with the columns of scores added; NaN where an image can't be read."""
        return {**batch, **{name: np.asarray(column) for name, column in self.scores(batch).items()}}
