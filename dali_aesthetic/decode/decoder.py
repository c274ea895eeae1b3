"""The decoder: batches of encoded images in, batches of pixels out, by DALI, codecs and Pillow.

A batch goes through DALI in chunks that are bounded in images and in decoded bytes, so large photos can't
exhaust the memory. A chunk that raises is decoded again without the images that DALI can't decode, which go
to Pillow: a bad image costs itself, never its neighbours."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import compress, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from dali_aesthetic.decode import codecs
from dali_aesthetic.decode.batches import Chunker
from dali_aesthetic.decode.facts import encoded_facts
from dali_aesthetic.decode.geometry import resize_steps
from dali_aesthetic.decode.handoff import assemble, to_torch
from dali_aesthetic.decode.headers import Limits, picture_alone, probe
from dali_aesthetic.decode.jpeg import (
    COMMON_LAYOUT,
    ONE_COMPONENT,
    UNCLEAR,
    swaps_sides,
    with_plain_sampling,
)
from dali_aesthetic.decode.pillow import Rescued, rescue
from dali_aesthetic.decode.pipelines import (
    CPU,
    PIECE,
    PIXELS,
    Feed,
    Lane,
    Lanes,
    Retry,
    Source,
    blank_jpeg,
    build_pipeline,
    has_jpeg_engine,
    is_engines,
)
from dali_aesthetic.layout import PROFILE_SIDE
from dali_aesthetic.overlap import StageTimes, pool
from dali_aesthetic.types import Buffer, EncodedBatch, ImageBatch, ImageHeader, Route

if TYPE_CHECKING:
    from dali_aesthetic.decode.scan_check import ScanCheck

_log = logging.getLogger(__name__)
_DEPTH, _AHEAD = 2, 2
_GPU_DEPTH, _GPU_AHEAD = 4, 4
"""Chunks ahead in a lane (beside an encoder of 6,000 images/s four gave 5,390 end to end, two 4,980), and
batches ahead in all lanes together."""
_GPU_LANES = 2
"""The most lanes of a layout."""
_ENGINE_THREADS = 2
"""Threads of a lane of the JPEG engine: each also has a CUDA stream, and the GPU has 32 queues for them."""
_CHECKED_AT_ONCE = 1024
"""JPEGs in a check: however many they are, it holds up the encoder for as long as the longest takes."""
_MOST_CHECKED = 16 << 20
"""The largest JPEG whose MCUs the GPU counts."""
_UNCHECKED = "JPEGs that were cut and got an end marker go unnoticed, with pixels of other images"
_MOST_PIXEL_CHUNKS = 3
"""Chunks of `PIXELS` alive at a time: one is decoded, one waits for its turn or DALI's, one is resized."""


@dataclass(slots=True, eq=False)
class _Chunk:
    """Rows for one lane. In `pixels` are those of a chunk of `PIXELS` until it is in its lane."""

    layout: bytes
    rows: list[int]
    lane: Lane | None = None
    pixels: list[Future[npt.NDArray[np.uint8]]] | None = None


@dataclass(slots=True)
class _Job:
    """A batch in flight: its rows in DALI chunks, and the rows that Pillow decodes meanwhile.

    `short` wait for the rows whose data turned out to be too few.
    """

    batch: EncodedBatch
    headers: list[ImageHeader]
    chunks: list[_Chunk]
    pillow: dict[int, Future[Rescued]]
    short: list[Callable[[], Iterable[int]]]
    parts_NHWC: list[torch.Tensor] = field(default_factory=list)
    wholes_NPPC: list[torch.Tensor] = field(default_factory=list)
    facts: Future[npt.NDArray[np.void]] | None = None
    rows: list[int] = field(default_factory=list)

    def take(self, rows: list[int], outputs: list[torch.Tensor]) -> None:
        """Adds the outputs of a pipeline for these rows."""
        self.parts_NHWC.append(outputs[0])
        self.wholes_NPPC += outputs[1:]
        self.rows += rows


class DaliDecoder:
    """Decodes to uint8 RGB squares of `image_size` on `device`, padded to `batch_size` images.

    `engine` has the seconds that `decode` waited for the JPEG engine; otherwise it waits for CPU cores.
    """

    def __init__(
        self,
        *,
        image_size: int,
        batch_size: int,
        device: torch.device,
        num_threads: int,
        limits: Limits,
        apply_exif: bool = False,
        profile: bool = False,
    ) -> None:
        """`apply_exif` turns images upright first; the reference doesn't. `profile` adds what `--profile`
        needs to the batches."""
        self._whole_side = PROFILE_SIDE if profile else 0
        self._image_size, self._batch_size, self._device = image_size, batch_size, device
        self._limits, self._num_threads, self._apply_exif = limits, num_threads, apply_exif
        on_gpu = device.type == "cuda"
        chunk_images = min(batch_size, 256 if on_gpu else 64)
        # Small chunks are slow on a GPU, and repeating a chunk is cheap; on a CPU it is the reverse.
        self._chunker = Chunker(
            chunk_images, 2 << 30, 64 if on_gpu else 8, by_layout=on_gpu, coded=codecs.formats()
        )
        self._device_id = (device.index or 0) if on_gpu else None
        self._threads = pool(num_threads, "images")
        self._undecoded, self._num_pixel_chunks = deque[tuple[_Job, _Chunk]](), 0
        depth, self._ahead = (_GPU_DEPTH, _GPU_AHEAD) if on_gpu else (_DEPTH, _AHEAD)
        # Without an engine the entropy decoding of JPEGs is the work of these threads.
        self._has_engine = on_gpu and has_jpeg_engine(device)
        self._engine_threads = (
            min(num_threads, _ENGINE_THREADS) if self._has_engine else max(1, num_threads // 2)
        )
        self.engine = StageTimes("decode: JPEG engine")
        self._lanes = Lanes(
            lambda source, layout, depth: self._build(source, layout, chunk_images, depth),
            chunk_images,
            depth,
            _GPU_LANES if on_gpu else 1,
        )
        self._lanes.open(COMMON_LAYOUT if on_gpu else CPU)
        self._scan_check = _scan_check(device) if on_gpu else None
        self._retries = {layout: self._retry(layout) for layout in (COMMON_LAYOUT, CPU)}

    def decode(self, batches: Iterable[EncodedBatch]) -> Iterator[ImageBatch]:
        """Yields an `ImageBatch` a batch, in order. An error of `batches` comes after the ones before it."""
        source, jobs = iter(batches), deque[_Job]()
        self.engine.blocked_on_empty = 0.0
        end: BaseException | None = None
        try:
            while True:
                end = end or self._start_ahead(source, jobs)
                if not jobs:
                    break
                job = jobs.popleft()
                for chunk in job.chunks:
                    self._submit_decoded(chunk)
                    self._collect(job, chunk)
                yield self._finish(job)
        finally:
            self._lanes.drain()
            for _, chunk in self._undecoded:
                for future in chunk.pixels or ():
                    future.cancel()
            self._undecoded.clear()
            self._num_pixel_chunks = 0
        if end is not None and not isinstance(end, StopIteration):
            raise end

    def _start_ahead(self, source: Iterator[EncodedBatch], jobs: deque[_Job]) -> BaseException | None:
        """Start batches until there are enough; returns what ended `source`, an error or StopIteration."""
        while len(jobs) < self._ahead:
            try:
                jobs.append(self._start(next(source)))
            except BaseException as end:
                return end
        return None

    def close(self) -> None:
        """Stop the threads. DALI's own end with the pipeline."""
        self._threads.shutdown(cancel_futures=True)

    def _retry(self, layout: bytes) -> Retry:
        return Retry(lambda source: self._build(source, layout, PIECE, 1))

    def _build(self, source: Source, layout: bytes, max_batch: int, prefetch: int) -> Any:
        on_cpu = self._device_id is None or layout == CPU
        return build_pipeline(
            source,
            max_batch=max_batch,
            num_threads=self._num_threads if on_cpu else self._engine_threads,
            device_id=self._device_id,
            prefetch=prefetch,
            apply_exif=self._apply_exif,
            by_engine=is_engines(layout),
            decoded=layout == PIXELS,
            whole_side=self._whole_side,
        )

    def _start(self, batch: EncodedBatch) -> _Job:
        headers = [self._routed(header) for header in batch.headers]
        pillow = {
            row: self._rescue_later(batch, row)
            for row, header in enumerate(headers)
            if header.route is Route.PILLOW
        }
        chunks = [_Chunk(layout, rows) for layout, rows in self._chunker.divide(headers)]
        job = _Job(batch=batch, headers=headers, chunks=chunks, pillow=pillow, short=[])
        if self._whole_side:
            job.facts = self._threads.submit(encoded_facts, batch.samples, batch.headers)
        for chunk in chunks:
            if chunk.layout == PIXELS:
                self._undecoded.append((job, chunk))
                continue
            chunk.lane = self._lanes.submit(self._feed_of(batch, chunk.rows), chunk.layout)
        by_engine = [row for chunk in chunks if is_engines(chunk.layout) for row in chunk.rows]
        for first in range(0, len(by_engine), _CHECKED_AT_ONCE):
            job.short.append(self._check_scans(batch, by_engine[first : first + _CHECKED_AT_ONCE]))
        self._decode_ahead()
        return job

    def _decode_ahead(self) -> None:
        """Start the decoding of `PIXELS`, in order, as far as their memory is bounded."""
        for job, chunk in self._undecoded:
            if chunk.pixels is None:
                if self._num_pixel_chunks == _MOST_PIXEL_CHUNKS:
                    break
                self._num_pixel_chunks += 1
                chunk.pixels = [
                    self._threads.submit(codecs.decode, _image(job.batch, row), job.headers[row])
                    for row in chunk.rows
                ]

    def _submit_decoded(self, due: _Chunk) -> None:
        """Queue the chunks whose pixels are there in their lane, in order; waits for those of `due`."""
        while self._undecoded:
            job, chunk = self._undecoded[0]
            futures = chunk.pixels or []
            if chunk is not due and not (futures and all(future.done() for future in futures)):
                break
            self._undecoded.popleft()
            failed = {row for row, future in zip(chunk.rows, futures, strict=True) if future.exception()}
            job.pillow.update({row: self._rescue_later(job.batch, row) for row in failed})
            chunk.rows, chunk.pixels = [row for row in chunk.rows if row not in failed], None
            if chunk.rows:
                pixels = [future.result() for future in futures if not future.exception()]
                chunk.lane = self._lanes.submit((pixels, *self._steps_of(job.batch, chunk.rows)), PIXELS)

    def _check_scans(self, batch: EncodedBatch, rows: list[int]) -> Callable[[], Iterable[int]]:
        """Launch the check of rows that the JPEG engine decodes; returns what waits for those that are short.

        Rows of very long data count as short.
        """
        if self._scan_check is None:
            return tuple
        images = [_image(batch, row) for row in rows]
        long = [row for row, image in zip(rows, images, strict=True) if len(image) > _MOST_CHECKED]
        pending = self._scan_check.start(
            [image if len(image) <= _MOST_CHECKED else b"" for image in images],
            [batch.headers[row] for row in rows],
        )
        return lambda: [*long, *compress(rows, pending.short())]

    def _routed(self, header: ImageHeader) -> ImageHeader:
        """DALI needs the region, and so the orientation, before it decodes."""
        unclear = self._apply_exif and header.orientation == UNCLEAR and header.route is Route.DALI
        return header._replace(route=Route.PILLOW) if unclear else header

    def _feed_of(self, batch: EncodedBatch, rows: list[int]) -> Feed:
        images = [np.frombuffer(_fed(_image(batch, row), batch.headers[row]), np.uint8) for row in rows]
        return images, *self._steps_of(batch, rows)

    def _steps_of(self, batch: EncodedBatch, rows: list[int]) -> list[npt.NDArray[np.float32]]:
        return resize_steps([self._upright_size(batch.headers[row]) for row in rows], self._image_size)

    def _upright_size(self, header: ImageHeader) -> tuple[int, int]:
        if self._apply_exif and swaps_sides(header.orientation):
            return header.height, header.width
        return header.width, header.height

    def _collect(self, job: _Job, chunk: _Chunk) -> None:
        """Take the chunk's pixels from DALI, or redo the chunk where DALI raised."""
        if chunk.lane is not None:
            began = time.perf_counter()
            try:
                with chunk.lane.oldest() as outputs:
                    if self._has_engine and is_engines(chunk.layout):
                        self.engine.blocked_on_empty += time.perf_counter() - began
                    job.take(chunk.rows, [to_torch(output) for output in outputs])
            except RuntimeError:
                self._chunker.failed()
                self._redo(job, chunk.layout, chunk.rows)
            else:
                self._chunker.passed()
        if chunk.layout == PIXELS:
            self._num_pixel_chunks -= 1
            self._decode_ahead()

    def _redo(self, job: _Job, layout: bytes, rows: list[int]) -> None:
        """Decode the rows again without the images that DALI names, which go to Pillow."""
        left = set(rows)
        retry = self._retries[COMMON_LAYOUT if is_engines(layout) else CPU]
        for piece, parts in retry.decode(rows, lambda piece: self._feed_of(job.batch, piece)):
            job.take(piece, parts)
            left.difference_update(piece)
        job.pillow.update({row: self._rescue_later(job.batch, row) for row in left})

    def _rescue_later(self, batch: EncodedBatch, row: int) -> Future[Rescued]:
        image, header = _image(batch, row), batch.headers[row]
        options = (self._image_size, self._limits, self._apply_exif, self._whole_side)
        return self._threads.submit(rescue, image, header, *options)

    def _finish(self, job: _Job) -> ImageBatch:
        if short := {row for rows in job.short for row in rows()}:
            job.pillow.update({row: self._rescue_later(job.batch, row) for row in short})
            job.wholes_NPPC, _ = _without(job.wholes_NPPC, job.rows, short)
            job.parts_NHWC, job.rows = _without(job.parts_NHWC, job.rows, short)
        pixels_SSC, whole_PPC = [], []
        for row, future in sorted(job.pillow.items()):
            rescued = future.result()
            job.headers[row] = rescued.header
            if rescued.pixels_SSC is not None:
                pixels_SSC.append(rescued.pixels_SSC)
                whole_PPC += [] if rescued.whole_PPC is None else [rescued.whole_PPC]
                job.rows.append(row)
        same: dict[str, Any] = {"batch_size": self._batch_size, "device": self._device}
        images_NHWC = assemble(job.parts_NHWC, pixels_SSC, image_size=self._image_size, **same)
        whole_NPPC = None
        if self._whole_side and job.rows:
            whole_NPPC = assemble(job.wholes_NPPC, whole_PPC, image_size=self._whole_side, **same)
        return ImageBatch(
            encoded=job.batch,
            headers=tuple(job.headers),
            images_NHWC=images_NHWC,
            rows_N=np.asarray(job.rows, np.int64),
            whole_NPPC=whole_NPPC,
            facts_R=job.facts.result() if job.facts else None,
        )


def _without(
    parts_NHWC: list[torch.Tensor], rows: list[int], dropped: set[int]
) -> tuple[list[torch.Tensor], list[int]]:
    """The parts cut into views that leave out rows."""
    places = iter(rows)
    views = []
    for part in parts_NHWC:
        stays = [next(places) not in dropped for _ in range(len(part))]
        ends = [0, *(i for i in range(1, len(stays)) if stays[i] != stays[i - 1]), len(stays)]
        views += [part[start:end] for start, end in pairwise(ends) if stays[start]]
    return views, [row for row in rows if row not in dropped]


def _scan_check(device: torch.device) -> ScanCheck | None:
    """Triton builds a kernel's launcher with a C compiler."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        _log.warning("%s: no C compiler (apt install gcc python3-dev)", _UNCHECKED)
        return None
    try:
        from dali_aesthetic.decode.scan_check import LONG, ScanCheck  # Triton is not there on every machine

        check = ScanCheck(device)
        blanks = [blank_jpeg(restarts) for restarts in (0, 1)]
        blanks += [blank.ljust(2 * LONG, b"\0") for blank in blanks]  # what is behind the end isn't read
        # Compiles the kernels, which is done beside the encoder's start.
        check.start(blanks, [probe(blank, Limits()) for blank in blanks]).short()
    except Exception as error:  # the import's, the compiler's, Triton's and the driver's are of many types
        _log.warning("%s: %s: %s", _UNCHECKED, type(error).__name__, error)
        return None
    return check


def _image(batch: EncodedBatch, row: int) -> Buffer:
    image = batch.samples[row].image
    assert image is not None, "a sample without an image has no route"
    return image


def _fed(image: Buffer, header: ImageHeader) -> Buffer:
    """The bytes that DALI sees: the sample's own, or others where its decoders would misread them."""
    if header.format == "webp":
        return picture_alone(image)
    odd = len(header.layout) == 1 and header.layout != ONE_COMPONENT
    return with_plain_sampling(image) if odd else image
