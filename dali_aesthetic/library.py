"""Scores from Python: `ImageScorer` and `score_images` take images and write nothing."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dali_aesthetic.config import Config, DecodeConfig, Device, ModelConfig
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.decode.pillow import square_pixels, turned_upright
from dali_aesthetic.launch.worker import Worker, build_worker, check_not_forked
from dali_aesthetic.overlap import OneAtATime, ahead
from dali_aesthetic.types import PendingScores, Sample, Shard, Status

ImageLike = str | Path | bytes | Image.Image
_PATIENCE_S = 5.0
"""Seconds that closing a stream waits for an image source that is blocked itself."""
_NO_SHARD = Shard(index=0, name="images", kind="folder", source="")


class ImageScorer:
    """Loads the model once and scores any number of images.

    Raises `ConfigError` for a configuration that can't run, `WeightsUnavailable` if weights are neither in
    `model.model_dir` nor can be downloaded. A scorer belongs to the process that made it: it can't be
    pickled, and in a fork of a process that had loaded a model it raises RuntimeError, where it would hang. A
    Dataset of torch makes it in the worker, at its first item.
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
        self._apply_exif = config.decode.apply_exif
        # The decoder has one queue: a second caller would be given the first one's images.
        self._alone = OneAtATime(
            "this scorer is in use: read its score_stream to the end or close it first, and give each "
            "thread an ImageScorer of its own, or a lock"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an ImageScorer holds threads and a device, so it can't be pickled for another process: make it "
            "in the worker, at its first image"
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

        Paths and bytes are decoded as a run's samples are (by DALI, on the GPU if there is one). PIL images
        get the transform of the reference. Raises OSError for a path that can't be read, and TypeError for an
        object of another type.
        """
        found = list(self._batches(images))
        return np.concatenate(found) if found else np.empty((0, len(self.head_names)), np.float32)

    def score_stream(self, images: Iterable[ImageLike]) -> Iterator[float]:
        """Raw scores of the first head, one by one in order, for any number of images; NaN as in `score`.

        `images` may be a generator: a few batches are prefetched and none is kept. A scorer runs one stream
        at a time and no `score` beside it; a second call raises RuntimeError, also from another thread.
        Leaving the loop early ends the stream.
        """
        with closing(self._batches(images)) as batches:
            for scores_RH in batches:
                yield from scores_RH[:, 0].tolist()

    def _batches(self, images: Iterable[ImageLike]) -> Generator[npt.NDArray[np.float32], None, None]:
        """Scores [R, H] of each batch of images, in order. One batch is launched ahead."""
        check_not_forked()
        worker = self._worker
        with self._alone:
            pixels_of = _PilPixels(worker.scorer.image_size, worker.limits, self._apply_exif)
            filled = fill_batches(pixels_of.samples(images), worker.scorer.batch_size, worker.limits)
            read = ahead(filled, 2, "read", patience=_PATIENCE_S)
            batches = worker.scorer.score(worker.decoder.decode(read))
            previous: PendingScores | None = None
            while True:
                check_not_forked()
                try:
                    pending = next(batches, None)
                except Exception:
                    if previous is not None:
                        yield self._wait(previous, pixels_of)  # scores from before the failure
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
    """The pixels of PIL images, which are decoded already and only keep their place in the batches."""

    def __init__(self, image_size: int, limits: Limits, apply_exif: bool) -> None:
        self._image_size, self._limits, self._apply_exif = image_size, limits, apply_exif
        self._pixels: dict[str, npt.NDArray[np.uint8]] = {}

    def samples(self, images: Iterable[ImageLike]) -> Iterator[Sample]:
        """Every image as a sample, in order. The sample of a PIL image has no bytes."""
        if isinstance(images, str | bytes):
            raise TypeError("images: one string is given where a list of images belongs: give [image]")
        for number, image in enumerate(images):
            if isinstance(image, Image.Image):
                # An opened PIL image is not read yet, so its file may turn out to be damaged here.
                with suppress(Exception):  # Pillow's plugins raise nearly every type
                    if 0 < image.width * image.height <= self._limits.max_pixels:
                        turned = turned_upright(image) if self._apply_exif else image
                        self._pixels[str(number)] = square_pixels(turned, self._image_size)
                yield _sample(number, None)
            else:
                yield _sample(number, _encoded(image))

    def take(self, samples: Sequence[Sample]) -> tuple[list[int], npt.NDArray[np.uint8]]:
        """The rows that are PIL images and their pixels, uint8 [n, S, S, 3]. They are dropped here."""
        rows = [row for row, sample in enumerate(samples) if sample.key in self._pixels]
        pixels = [self._pixels.pop(samples[row].key) for row in rows]
        return rows, np.stack(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8)


def score_images(
    images: Sequence[ImageLike], model: ModelConfig | None = None, *, device: Device = "auto"
) -> npt.NDArray[np.float32]:
    """Raw scores of `images` (paths, encoded bytes or PIL images), float32 [n]; NaN for unreadable ones.

    Loads the model for this one call; keep an `ImageScorer` for several.
    """
    return ImageScorer(model, device=device).score(images)


def _encoded(image: str | Path | bytes) -> bytes:
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if isinstance(image, bytes):
        return image
    raise TypeError(
        f"an image of type {type(image).__name__}: give a path, encoded bytes or a PIL image "
        "(PIL.Image.fromarray makes one of an array of pixels)"
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
