"""Scoring from Python: images in, numbers out, nothing written."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dali_aesthetic.config import Config, DecodeConfig, Device, ModelConfig
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.decode.pillow import square_pixels, turned_upright
from dali_aesthetic.launch.worker import Worker, build_worker
from dali_aesthetic.overlap import OneAtATime, ahead
from dali_aesthetic.types import PendingScores, Sample, Shard, Status

ImageLike = str | Path | bytes | Image.Image
_built_in: int | None = None
"""The process that has built a model. DALI's and torch's threads are not there in what is forked from it."""
_PATIENCE_S = 5.0
"""How long leaving a stream waits for a generator that is waiting itself, for a queue or a socket."""
_NO_SHARD = Shard(index=0, name="images", kind="folder", source="")


class ImageScorer:
    """Loads the model once and scores any number of images.

    Raises `ConfigError` for a configuration that can't run, `WeightsUnavailable` where weights are neither in
    `model.model_dir` nor to be downloaded, and RuntimeError in a process that was forked from one that has
    had a scorer: it would wait for ever.
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
        _check_not_forked()
        self._worker: Worker = build_worker(config)
        self._apply_exif = config.decode.apply_exif
        # The decoder has one queue: a second caller would be given the first one's images.
        self._alone = OneAtATime(
            "this scorer is in use: read its score_stream to the end or close it first, and give each "
            "thread an ImageScorer of its own, or a lock"
        )

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
        images take the reference's transform. A path that can't be read raises OSError, what is no image
        TypeError.
        """
        found = list(self._batches(images))
        return np.concatenate(found) if found else np.empty((0, len(self.head_names)), np.float32)

    def score_stream(self, images: Iterable[ImageLike]) -> Iterator[float]:
        """Raw scores of the first head, one by one in order, for any number of images; NaN as in `score`.

        `images` may be a generator: a few batches are taken ahead of what has been given out, and nothing is
        kept. One stream of a scorer at a time, and no `score` meanwhile (RuntimeError, as from several
        threads at once); leaving the loop early ends it.
        """
        with closing(self._batches(images)) as batches:
            for scores_RH in batches:
                yield from scores_RH[:, 0].tolist()

    def _batches(self, images: Iterable[ImageLike]) -> Generator[npt.NDArray[np.float32], None, None]:
        """Scores [R, H] of each batch of images, in order; one batch is launched ahead of the one given."""
        with self._alone:
            yield from self._launched(images)

    def _launched(self, images: Iterable[ImageLike]) -> Iterator[npt.NDArray[np.float32]]:
        worker = self._worker
        pixels_of = _PilPixels(worker.scorer.image_size, worker.limits, self._apply_exif)
        filled = fill_batches(pixels_of.samples(images), worker.scorer.batch_size, worker.limits)
        read = ahead(filled, 2, "read", patience=_PATIENCE_S)
        batches = worker.scorer.score(worker.decoder.decode(read))
        previous: PendingScores | None = None
        while True:
            try:
                pending = next(batches, None)
            except Exception:
                if previous is not None:
                    yield self._wait(previous, pixels_of)  # what came before the failure is given out
                raise
            if previous is not None:
                yield self._wait(previous, pixels_of)
            if pending is None:
                return
            previous = pending

    def _wait(self, pending: PendingScores, pixels_of: _PilPixels) -> npt.NDArray[np.float32]:
        scored = pending.wait()
        rows, pixels_NHWC = pixels_of.take(scored.encoded.samples)
        if rows:
            scored.scores_RH[rows] = self._worker.scorer.score_pixels(torch.from_numpy(pixels_NHWC))
        return scored.scores_RH


class _PilPixels:
    """PIL images on their way: decoded already, they only keep their place among the others."""

    def __init__(self, image_size: int, limits: Limits, apply_exif: bool) -> None:
        self._image_size, self._limits, self._apply_exif = image_size, limits, apply_exif
        self._pixels: dict[str, npt.NDArray[np.uint8]] = {}

    def samples(self, images: Iterable[ImageLike]) -> Iterator[Sample]:
        """Every image as a sample, in order; that of a PIL image is without an image."""
        if isinstance(images, str | bytes):
            raise TypeError("images: one string is given where a list of images belongs: give [image]")
        for number, image in enumerate(images):
            if isinstance(image, Image.Image):
                # Opened, a file is not read yet: it can be as damaged as one that is given by its path.
                with suppress(Exception):  # Pillow's plugins raise nearly every type for it
                    if 0 < image.width * image.height <= self._limits.max_pixels:
                        turned = turned_upright(image) if self._apply_exif else image
                        self._pixels[str(number)] = square_pixels(turned, self._image_size)
                yield _sample(number, None)
            else:
                yield _sample(number, _encoded(image))

    def take(self, samples: Sequence[Sample]) -> tuple[list[int], npt.NDArray[np.uint8]]:
        """The rows that were PIL images and their pixels [n, S, S, 3], which are forgotten here."""
        rows = [row for row, sample in enumerate(samples) if sample.key in self._pixels]
        pixels = [self._pixels.pop(samples[row].key) for row in rows]
        return rows, np.stack(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8)


def score_images(
    images: Sequence[ImageLike], model: ModelConfig | None = None, *, device: Device = "auto"
) -> npt.NDArray[np.float32]:
    """Raw scores of `images` (paths, encoded bytes or PIL images), float32 [n]; NaN for unreadable ones.

    Loads the model for this one call: keep an `ImageScorer` for more.
    """
    return ImageScorer(model, device=device).score(images)


def _check_not_forked() -> None:
    global _built_in
    if _built_in not in (None, os.getpid()):
        raise RuntimeError(
            "this process was forked from one in which a model was used, whose threads it lacks: start "
            'processes with multiprocessing.set_start_method("spawn"), or use no model before they begin'
        )
    _built_in = os.getpid()


def _encoded(image: str | Path | bytes) -> bytes:
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if isinstance(image, bytes):
        return image
    raise TypeError(
        f"an image of type {type(image).__name__}: give a path, encoded bytes or a PIL image (pixels in an "
        "array are one with PIL.Image.fromarray)"
    )


def _sample(number: int, data: bytes | None) -> Sample:
    missing = Status.MISSING_IMAGE if data is None else Status.EMPTY
    return Sample(
        shard=_NO_SHARD,
        key=str(number),
        image=data,
        entries=(),
        source="",
        offset=0,
        status=Status.OK if data else missing,
    )
