"""Scoring from Python: images in, numbers out, nothing written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dali_aesthetic.config import Config, DecodeConfig, Device, ModelConfig
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.decode.pillow import square_pixels
from dali_aesthetic.launch.worker import Worker, build_worker
from dali_aesthetic.overlap import ahead
from dali_aesthetic.types import Sample, Shard, ShardEnd, Status

ImageLike = str | Path | bytes | Image.Image
_NO_SHARD = Shard(index=0, name="images", kind="folder", source="")


class ImageScorer:
    """Loads the model once and scores any number of images.

    Raises `ConfigError` for a configuration that can't run and `WeightsUnavailable` where weights are
    neither in `model.model_dir` nor to be downloaded.
    """

    def __init__(
        self,
        model: ModelConfig | None = None,
        *,
        device: Device = "auto",
        decode: DecodeConfig | None = None,
    ) -> None:
        config = Config(
            input=("-",),
            output="-",
            device=device,
            model=model or ModelConfig(),
            decode=decode or DecodeConfig(),
        )
        self._worker: Worker = build_worker(config)

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the columns of `score_all`."""
        return self._worker.scorer.head_names

    def score(self, images: Sequence[ImageLike]) -> npt.NDArray[np.float32]:
        """Raw scores of the first head, float32 [n], in order; NaN where an image can't be decoded."""
        return self.score_all(images)[:, 0]

    def score_all(self, images: Sequence[ImageLike]) -> npt.NDArray[np.float32]:
        """Raw scores of every head, float32 [n, H], in order; NaN where an image can't be decoded.

        Paths and bytes take the same way as a run's samples (DALI, on the GPU where there is one); PIL
        images are already decoded and take the reference's transform. A path that can't be read raises
        OSError.
        """
        scores = np.full((len(images), len(self.head_names)), np.nan, np.float32)
        decoded = [i for i, image in enumerate(images) if isinstance(image, Image.Image)]
        encoded = [i for i, image in enumerate(images) if not isinstance(image, Image.Image)]
        if decoded:
            scores[decoded] = self._score_pil([images[i] for i in decoded])
        if encoded:
            scores[encoded] = self._score_bytes(images[i] for i in encoded)
        return scores

    def _score_pil(self, images: Sequence[ImageLike]) -> npt.NDArray[np.float32]:
        size = self._worker.scorer.image_size
        pixels = [square_pixels(image, size) for image in images if isinstance(image, Image.Image)]
        return self._worker.scorer.score_pixels(torch.from_numpy(np.stack(pixels)))

    def _score_bytes(self, images: Iterable[ImageLike]) -> npt.NDArray[np.float32]:
        worker = self._worker
        batches = fill_batches(_samples(images), worker.scorer.batch_size, worker.limits)
        pixels = worker.decoder.decode(ahead(batches, 2, "read"))
        scored = [pending.wait() for pending in worker.scorer.score(ahead(pixels, 2, "decode"))]
        return np.concatenate([batch.scores_RH for batch in scored])


def score_images(
    images: Sequence[ImageLike], model: ModelConfig | None = None, *, device: Device = "auto"
) -> npt.NDArray[np.float32]:
    """Raw scores of `images` (paths, encoded bytes or PIL images), float32 [n]; NaN for unreadable ones.

    Loads the model for this one call: keep an `ImageScorer` for more.
    """
    return ImageScorer(model, device=device).score(images)


def _samples(images: Iterable[ImageLike]) -> Iterator[Sample | ShardEnd]:
    for number, image in enumerate(images):
        data = image if isinstance(image, bytes) else Path(str(image)).read_bytes()
        yield Sample(
            shard=_NO_SHARD,
            key=str(number),
            image=data,
            entries=(),
            source="",
            offset=0,
            status=Status.OK if data else Status.EMPTY,
        )
