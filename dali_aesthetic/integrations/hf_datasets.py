"""Scores for a Hugging Face dataset.

    from datasets import Image, load_dataset
    from dali_aesthetic.integrations.hf_datasets import ScoreColumn

    images = load_dataset("imagefolder", data_dir="photos", split="train")
    scored = images.cast_column("image", Image(decode=False)).map(ScoreColumn("image"), batched=True)
    kept = scored.filter(lambda score: score >= 5.0, input_columns="aesthetic_score")

With `decode=False` the values are the files' own bytes, which DALI decodes. Decoded images work too: they are
slower, and already turned by their EXIF orientation.
"""

from __future__ import annotations

from typing import Any

from dali_aesthetic.integrations.batches import BatchScorer


class ScoreColumn(BatchScorer):
    """A function for `Dataset.map(…, batched=True)`, also of a streamed dataset.

    Takes the arguments of `BatchScorer`. Its fingerprint depends on its settings alone, so that a second
    `map` with the same ones comes from the cache.
    """

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[float]]:
        """The columns of scores alone, which `map` adds; NaN where an image can't be read."""
        return {name: column.tolist() for name, column in self.scores(batch).items()}
