"""Scores from Python: `ImageScorer` and `score_images` take images and write nothing."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, Never, NoReturn, Self, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dali_aesthetic.config import Config, ConfigError, DecodeConfig, Device, ModelConfig
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.decode.pillow import square_pixels, turned_upright
from dali_aesthetic.fields import in_fields
from dali_aesthetic.launch.engine import RunResult, Watch
from dali_aesthetic.launch.filter import run_top
from dali_aesthetic.launch.run import run as run_config
from dali_aesthetic.launch.slurm import ALONE, Task
from dali_aesthetic.launch.worker import Worker, build_worker, check_not_forked, is_forked
from dali_aesthetic.overlap import OneAtATime, ahead
from dali_aesthetic.score.scorer import Scorer
from dali_aesthetic.types import ImageHeader, PendingScores, Route, Sample, ScoredBatch, Shard, Status

ImageLike = str | Path | bytes | Image.Image
_PATIENCE_S = 5.0
"""Seconds that closing a stream waits for an image source that is blocked itself."""
_NO_SHARD = Shard(index=0, name="images", kind="folder", source="")


class ImageDetails(NamedTuple):
    """What `ImageScorer.score(…, details=True)` gives for an image.

    `score` is the raw score of the first head, NaN where `status` is not "ok"; `message` then gives the
    reason, where there is more to say. `width` and `height` are the stored image's, 0 where unknown.
    `embedding` is the CLIP image embedding, float16 [D] of length 1, or None where the image wasn't scored.
    """

    score: float
    status: Status
    message: str
    width: int
    height: int
    embedding: npt.NDArray[np.float16] | None


class ImageScorer:
    """Loads the model once and scores any number of images. `with ImageScorer() as scorer:` closes it.

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
        **misplaced: Never,
    ) -> None:
        _check_arguments("ImageScorer", model, misplaced)
        config = Config(
            input=("-",),
            output="-",
            device=device,
            model=model or ModelConfig(),
            decode=decode or DecodeConfig(),
        )
        try:
            worker = build_worker(config)
        except ConfigError as error:
            raise ConfigError(in_fields(str(error), Config)) from error
        self._worker: Worker | None = worker
        self._head_names = worker.scorer.head_names
        backend, batch_size = worker.scorer.backend, worker.scorer.batch_size
        self._description = (
            f"{config.model.encoder} ({config.model.weights}) with {', '.join(self._head_names)} on "
            f"{worker.device}, {backend.precision} by {backend.name}, {batch_size} images at a time"
        )
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
        return self._head_names

    def __repr__(self) -> str:
        return f"<ImageScorer {self._description}{'' if self._worker else ', closed'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the model, its threads and its memory. What is called afterwards raises RuntimeError."""
        if is_forked():
            return  # ending the decoder would wait for threads that a fork lacks
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.decoder.close()

    @overload
    def score(
        self, images: Sequence[ImageLike], *, details: Literal[False] = False
    ) -> npt.NDArray[np.float32]: ...

    @overload
    def score(self, images: Sequence[ImageLike], *, details: Literal[True]) -> list[ImageDetails]: ...

    def score(
        self, images: Sequence[ImageLike], *, details: bool = False
    ) -> npt.NDArray[np.float32] | list[ImageDetails]:
        """Raw scores of the first head, float32 [n], in order; NaN where an image can't be decoded.

        With `details` a list of `ImageDetails` instead: score, status, message, size and embedding.
        """
        if details:
            return [row for scored in self._batches(images, details=True) for row in _details(scored)]
        return self.score_all(images)[:, 0]

    def score_all(self, images: Sequence[ImageLike]) -> npt.NDArray[np.float32]:
        """Raw scores of every head, float32 [n, H], in order; NaN where an image can't be decoded.

        Paths and bytes are decoded as a run's samples are (by DALI, on the GPU if there is one). PIL images
        get the transform of the reference. Raises OSError for a path that can't be read, and TypeError for an
        object of another type.
        """
        found = [scored.scores_RH for scored in self._batches(images)]
        return np.concatenate(found) if found else np.empty((0, len(self.head_names)), np.float32)

    def score_stream(self, images: Iterable[ImageLike]) -> Iterator[float]:
        """Raw scores of the first head, one by one in order, for any number of images; NaN as in `score`.

        `images` may be a generator: a few batches are prefetched and none is kept. A scorer runs one stream
        at a time and no `score` beside it; a second call raises RuntimeError, also from another thread.
        Leaving the loop early ends the stream.
        """
        with closing(self._batches(images)) as batches:
            for scored in batches:
                yield from scored.scores_RH[:, 0].tolist()

    def _open_worker(self) -> Worker:
        check_not_forked()
        if self._worker is None:
            raise RuntimeError("this scorer is closed: score within its `with` block, or make another one")
        return self._worker

    def _batches(
        self, images: Iterable[ImageLike], *, details: bool = False
    ) -> Generator[ScoredBatch, None, None]:
        """Each batch of images with its scores, in order. One batch is launched ahead.

        With `details` their headers and embeddings include those of PIL images.
        """
        worker = self._open_worker()
        with self._alone:
            worker.scorer.keep_embeddings = details
            pixels_of = _PilPixels(worker.scorer.image_size, worker.limits, self._apply_exif)
            filled = fill_batches(pixels_of.samples(images), worker.scorer.batch_size, worker.limits)
            read = ahead(filled, 2, "read", patience=_PATIENCE_S)
            batches = worker.scorer.score(worker.decoder.decode(read))
            previous: PendingScores | None = None
            while True:
                self._open_worker()
                try:
                    pending = next(batches, None)
                except Exception:
                    if previous is not None:
                        yield _wait(previous, pixels_of, worker.scorer)  # scores from before the failure
                    raise
                if previous is not None:
                    yield _wait(previous, pixels_of, worker.scorer)
                if pending is None:
                    return
                previous = pending


class _PilPixels:
    """The pixels of PIL images, which are decoded already and only keep their place in the batches."""

    def __init__(self, image_size: int, limits: Limits, apply_exif: bool) -> None:
        self._image_size, self._limits, self._apply_exif = image_size, limits, apply_exif
        self._pixels: dict[str, npt.NDArray[np.uint8]] = {}
        self._headers: dict[str, ImageHeader] = {}

    def samples(self, images: Iterable[ImageLike]) -> Iterator[Sample]:
        """Every image as a sample, in order. The sample of a PIL image has no bytes."""
        if isinstance(images, str | bytes):
            raise TypeError("images: one string is given where a list of images belongs: give [image]")
        for number, image in enumerate(images):
            if isinstance(image, Image.Image):
                self._read(str(number), image)
                yield _sample(number, None)
            else:
                yield _sample(number, _encoded(image))

    def _read(self, key: str, image: Image.Image) -> None:
        status, message = Status.OK, ""
        try:
            width, height = image.size
            if not width * height:
                status, message = Status.UNDECODABLE, f"{width}x{height}: no pixels"
            elif width * height > self._limits.max_pixels:
                status, message = Status.TOO_LARGE, self._limits.objection(width, height, 0)
            else:
                # An opened PIL image is not read yet, so its file may turn out to be damaged here.
                turned = turned_upright(image) if self._apply_exif else image
                self._pixels[key] = square_pixels(turned, self._image_size)
        except Exception as error:  # Pillow's plugins raise nearly every type
            status, message = Status.UNDECODABLE, str(error) or type(error).__name__
        self._headers[key] = ImageHeader(
            image.format or "", *image.size, Route.NOBODY, status=status, message=message
        )

    def headers(self, samples: Sequence[Sample], headers: Sequence[ImageHeader]) -> tuple[ImageHeader, ...]:
        """`headers` with those of the PIL images, which are dropped here."""
        return tuple(
            self._headers.pop(sample.key, header) for sample, header in zip(samples, headers, strict=True)
        )

    def take(self, samples: Sequence[Sample]) -> tuple[list[int], npt.NDArray[np.uint8]]:
        """The rows that are PIL images and their pixels, uint8 [n, S, S, 3]. They are dropped here."""
        rows = [row for row, sample in enumerate(samples) if sample.key in self._pixels]
        pixels = [self._pixels.pop(samples[row].key) for row in rows]
        return rows, np.stack(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8)


def score_images(
    images: Sequence[ImageLike],
    model: ModelConfig | None = None,
    *,
    device: Device = "auto",
    **misplaced: Never,
) -> npt.NDArray[np.float32]:
    """Raw scores of `images` (paths, encoded bytes or PIL images), float32 [n]; NaN for unreadable ones.

    Loads the model for this one call; keep an `ImageScorer` for several.
    """
    _check_arguments("score_images", model, misplaced)
    with ImageScorer(model, device=device) as scorer:
        return scorer.score(images)


def run(config: Config, *, watch: Watch | None = None, task: Task = ALONE) -> RunResult:
    """Score every sample of `config.input` and write the kept ones, scores and stats to `config.output`.

    Where the threshold is a share, everything is scored first, into `OUTPUT/scored`, and then cut. Raises
    `ConfigError` for what can't be run (also for an output that holds another run), `WeightsUnavailable`, and
    OSError where the output can't be written. A shard that can't be read, or over which three workers died,
    is in the result's `stats.failed`. Raises `AllWorkersLost` or `ClusterFailed` where no worker stays alive.

    `watch` is entered for the length of the work, with the live counters
    and the number of shards. `task` is this process's part in a job that has several.
    """
    try:
        if config.threshold.top is not None and not config.scores_only:
            return run_top(config, watch=watch)
        return run_config(config, watch=watch, task=task)
    except ConfigError as error:
        error.args = (in_fields(str(error), Config), *error.args[1:])
        raise


def _check_arguments(name: str, model: object, misplaced: Mapping[str, object]) -> None:
    """Raises TypeError for an encoder or a field of a section as argument: it says what to write."""
    given = {"encoder": model} if isinstance(model, str) else dict(misplaced)
    for field, value in given.items():
        for section in (ModelConfig, DecodeConfig):
            if field in section.model_fields:
                keyword = "model" if section is ModelConfig else "decode"
                argument = f"{keyword}={section.__name__}({field}={value!r})"
                raise TypeError(f"{name} takes no {field}: give it {argument}")
        raise TypeError(f"{name} takes model, device and decode, not {field}")


def _wait(pending: PendingScores, pixels_of: _PilPixels, scorer: Scorer) -> ScoredBatch:
    """The batch with what its PIL images have."""
    scored = pending.wait()
    samples, embeddings_RD = scored.encoded.samples, scored.embeddings_RD
    rows, pixels_NHWC = pixels_of.take(samples)
    if rows:
        scored.scores_RH[rows], embeddings_ND = scorer.embed_pixels(torch.from_numpy(pixels_NHWC))
        if scorer.keep_embeddings:
            if embeddings_RD is None:
                embeddings_RD = np.zeros((len(samples), embeddings_ND.shape[1]), np.float16)
            embeddings_RD[rows] = embeddings_ND
    headers = pixels_of.headers(samples, scored.headers)
    return replace(scored, headers=headers, embeddings_RD=embeddings_RD)


def _details(scored: ScoredBatch) -> Iterator[ImageDetails]:
    embeddings_RD = scored.embeddings_RD
    for row, header in enumerate(scored.headers):
        yield ImageDetails(
            score=float(scored.scores_RH[row, 0]),
            status=header.status,
            message=header.message,
            width=header.width,
            height=header.height,
            embedding=None
            if embeddings_RD is None or header.status is not Status.OK
            else embeddings_RD[row].copy(),
        )


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
