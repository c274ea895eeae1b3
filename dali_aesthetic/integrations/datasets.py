"""Scores for the rows of a dataset, in batches of columns: Hugging Face datasets, Ray Data and their like.

    from datasets import Image, load_dataset
    from dali_aesthetic.integrations.datasets import AestheticScorer, ScoreColumn

    images = load_dataset("imagefolder", data_dir="photos", split="train")
    scored = images.cast_column("image", Image(decode=False)).map(ScoreColumn("image"), batched=True)
    kept = scored.filter(lambda score: score >= 5.0, input_columns="aesthetic_score")

    scored = ray.data.read_parquet("images/").map_batches(
        AestheticScorer, fn_constructor_kwargs={"image_column": "bytes"},
        batch_size=512, concurrency=8, num_gpus=1,
    )
    kept = scored.filter(expr="aesthetic_score >= 5.0")

With `decode=False` the values are the files' own bytes, which DALI decodes. Decoded images work too: they are
slower, and already turned by their EXIF orientation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dali_aesthetic.config import DecodeConfig, Device, ModelConfig
from dali_aesthetic.library import ImageScorer
from dali_aesthetic.write.rows import score_columns


class BatchScorer:
    """Scores the images of a column. Loads the model at the first batch in each process.

    A value may be encoded bytes, a path, a PIL image, decoded pixels (uint8 [height, width, 3] or [height,
    width]), or the `{bytes, path}` of Hugging Face datasets. One that can't be read has the score NaN.
    """

    def __init__(
        self,
        image_column: str = "image",
        *,
        model: ModelConfig | None = None,
        device: Device = "auto",
        decode: DecodeConfig | None = None,
    ) -> None:
        """`model` defaults to laion-v2 on ViT-L/14; each of its heads is a column."""
        self.image_column = image_column
        self.model, self.device, self.decode = model or ModelConfig(), device, decode
        self._scorer: ImageScorer | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the loaded model, which the copy loads again. It is no part of a fingerprint either."""
        return {**self.__dict__, "_scorer": None}

    def scores(self, batch: Mapping[str, Iterable[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """The columns `aesthetic_score` (raw, float32) and those of further heads, in the batch's order.

        Raises KeyError for a batch without the column, and TypeError for a value that is no image or one row
        in place of a batch.
        """
        if self.image_column not in batch:
            there = ", ".join(batch)
            raise KeyError(f"no column {self.image_column!r} of images; there are {there}: name one of them")
        values = _column(batch[self.image_column])
        scorer = self._scorer = self._scorer or ImageScorer(
            self.model, device=self.device, decode=self.decode
        )
        scores_NH = scorer.score_all([_image(value) for value in values])
        names = score_columns(scorer.head_names)
        return {name: scores_NH[:, head] for head, name in enumerate(names)}


class ScoreColumn(BatchScorer):
    """A function for `Dataset.map(…, batched=True)` of Hugging Face, also of a streamed dataset.

    Takes the arguments of `BatchScorer`. Its fingerprint depends on its settings alone, so that a second
    `map` with the same ones comes from the cache.
    """

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[float]]:
        """The columns of scores alone, which `map` adds; NaN where an image can't be read."""
        return {name: column.tolist() for name, column in self.scores(batch).items()}


class AestheticScorer(BatchScorer):
    """A callable class for `Dataset.map_batches` of Ray Data: each of its actors loads the model once.

    Takes the arguments of `BatchScorer`. The batch is in Ray's default format, columns as numpy arrays.
    """

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The batch with the columns of scores added; NaN where an image can't be read."""
        return {**batch, **self.scores(batch)}


def _column(values: Any) -> Iterable[Any]:
    """Raises TypeError for a single image, whose rows or bytes would be taken for images."""
    is_pixels = isinstance(values, np.ndarray) and values.dtype == np.uint8
    is_one = isinstance(values, str | bytes | bytearray | memoryview | Path | Mapping | Image.Image)
    if is_one or (is_pixels and (values.ndim < 3 or values.shape[2:] == (3,))):
        raise TypeError("one row is given where a batch belongs: use map(…, batched=True) or map_batches")
    columns: Iterable[Any] = values
    return columns


def _read(path: str) -> bytes:
    if "://" not in path:
        return Path(path).read_bytes()
    import fsspec  # for the paths of a streamed dataset: `https://…`, `zip://a.jpg::/data/train.zip`

    with fsspec.open(path, "rb") as stream:
        content: bytes = stream.read()
    return content


def _image(value: Any) -> bytes | Image.Image:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if value is None:
        return b""
    if isinstance(value, str | Path):
        try:
            return _read(str(value))
        except (OSError, ValueError):  # the latter for a zero byte within
            return b""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (2, 3):
        return Image.fromarray(value)
    if isinstance(value, Image.Image):
        return value
    raise TypeError(f"a value of type {type(value).__name__} is no image: give bytes, a path or pixels")
