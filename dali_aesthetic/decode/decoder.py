"""The decoder: batches of encoded images in, batches of pixels out, by DALI and, beside it, Pillow.

A batch goes through DALI in chunks that are bounded in images and in decoded bytes, so large photos can't
exhaust the memory. A chunk that raises is decoded again without the images that DALI can't decode, which go
to Pillow: a bad image costs itself, never its neighbours."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dali_aesthetic.decode.geometry import resize_steps
from dali_aesthetic.decode.handoff import assemble, to_torch
from dali_aesthetic.decode.headers import Limits, picture_alone
from dali_aesthetic.decode.jpeg import ONE_COMPONENT, UNCLEAR, swaps_sides, with_plain_sampling
from dali_aesthetic.decode.pillow import Rescued, rescue
from dali_aesthetic.decode.pipelines import Feed, Lanes, Retry, Source, build_pipeline
from dali_aesthetic.overlap import pool
from dali_aesthetic.types import Buffer, EncodedBatch, ImageBatch, ImageHeader, Route

_PREFETCH = 2
_GPU_PREFETCH = 4
"""Chunks ahead in a lane: beside an encoder of 6,000 images/s four gave 5,390 end to end, two 4,980."""
_PLACEHOLDER = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360000000"
    "02000148afa4710000000049454e44ae426082"
)
"""A PNG of one pixel, fed for a batch without an image for DALI, which takes no empty batch. Without it the
source would read ahead to the next such batch, and a long run of Pillow's images would all be in memory."""


_CALM = 32
"""Chunks in a row that must pass before the chunks grow again."""
_FEWEST_ALIKE = 16
"""Layouts with fewer images in a batch share their chunks."""


@dataclass(slots=True)
class _Job:
    """A batch in flight: its rows in DALI chunks, and the rows that Pillow decodes meanwhile."""

    batch: EncodedBatch
    headers: list[ImageHeader]
    chunks: list[list[int]]
    pillow: dict[int, Future[Rescued]]
    parts_NHWC: list[torch.Tensor] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


class DaliDecoder:
    """Decodes to uint8 RGB squares of `image_size` on `device`, padded to `batch_size` images."""

    def __init__(
        self,
        *,
        image_size: int,
        batch_size: int,
        device: torch.device,
        num_threads: int,
        limits: Limits,
        apply_exif: bool = False,
    ) -> None:
        """`apply_exif` turns images upright first; the reference doesn't."""
        self._image_size, self._batch_size, self._device = image_size, batch_size, device
        self._limits, self._num_threads, self._apply_exif = limits, num_threads, apply_exif
        on_gpu = device.type == "cuda"
        chunk_images = min(batch_size, 256 if on_gpu else 64)
        # Small chunks are slow on a GPU, and repeating a chunk is cheap; on a CPU it is the reverse.
        most_bytes, fewest_images = ((2 << 30), 64) if on_gpu else ((512 << 20), 8)
        self._chunker = Chunker(chunk_images, most_bytes, fewest_images, by_layout=on_gpu)
        self._device_id = (device.index or 0) if on_gpu else None
        self._pillow = pool(num_threads, "pillow")
        self._feeds: Iterator[Feed] = iter(())
        self._jobs: deque[_Job] = deque()
        self._failure: BaseException | None = None
        self._num_lanes, prefetch = (2, _GPU_PREFETCH) if on_gpu else (1, _PREFETCH)
        self._lanes = Lanes(
            self._next_feed, lambda source: self._build(source, chunk_images, prefetch), self._num_lanes
        )
        self._retry = Retry(lambda source, most_images: self._build(source, most_images, 1))

    def decode(self, batches: Iterable[EncodedBatch]) -> Iterator[ImageBatch]:
        """Yields an `ImageBatch` a batch, in order. An error of `batches` comes after the ones before it."""
        self._feeds, self._failure = self._feed(iter(batches)), None
        self._lanes.start()
        try:
            while self._jobs:
                job = self._jobs.popleft()
                for chunk in job.chunks:
                    self._collect(job, chunk)
                yield self._finish(job)
        finally:  # the lanes are left empty, so that the next call's outputs are its own
            self._feeds = iter(())
            self._jobs.clear()
            self._lanes.drain()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop the Pillow threads. DALI's own end with the pipeline."""
        self._pillow.shutdown(cancel_futures=True)

    def _build(self, source: Source, max_batch: int, prefetch: int) -> Any:
        return build_pipeline(
            source,
            max_batch=max_batch,
            num_threads=max(1, self._num_threads // self._num_lanes),
            device_id=self._device_id,
            prefetch=prefetch,
            apply_exif=self._apply_exif,
        )

    def _next_feed(self) -> Feed:
        """DALI's source, which must not raise: an error upstream ends the feed and is raised later."""
        try:
            return next(self._feeds)
        except StopIteration:
            raise
        except BaseException as error:
            self._failure = error
            raise StopIteration from None

    def _feed(self, batches: Iterator[EncodedBatch]) -> Iterator[Feed]:
        """Queue a job for each batch and yield its chunks in the form the graph takes."""
        placeholder: Feed = [np.frombuffer(_PLACEHOLDER, np.uint8)], *resize_steps([(1, 1)], self._image_size)
        for batch in batches:
            job = self._start(batch)
            self._jobs.append(job)
            for chunk in job.chunks:
                yield self._feed_of(batch, chunk) if chunk else placeholder

    def _start(self, batch: EncodedBatch) -> _Job:
        headers = [self._routed(header) for header in batch.headers]
        pillow = {
            row: self._rescue_later(batch, row)
            for row, header in enumerate(headers)
            if header.route is Route.PILLOW
        }
        chunks = self._chunker.divide(headers) or [[]]
        return _Job(batch=batch, headers=headers, chunks=chunks, pillow=pillow)

    def _routed(self, header: ImageHeader) -> ImageHeader:
        """DALI needs the region, and so the orientation, before it decodes."""
        unclear = self._apply_exif and header.orientation == UNCLEAR and header.route is Route.DALI
        return header._replace(route=Route.PILLOW) if unclear else header

    def _feed_of(self, batch: EncodedBatch, rows: list[int]) -> Feed:
        sizes = [self._upright_size(batch.headers[row]) for row in rows]
        images = [np.frombuffer(_fed(_image(batch, row), batch.headers[row]), np.uint8) for row in rows]
        return images, *resize_steps(sizes, self._image_size)

    def _upright_size(self, header: ImageHeader) -> tuple[int, int]:
        if self._apply_exif and swaps_sides(header.orientation):
            return header.height, header.width
        return header.width, header.height

    def _collect(self, job: _Job, rows: list[int]) -> None:
        """Take the chunk's pixels from DALI, or redo the chunk where DALI raised."""
        try:
            with self._lanes.oldest() as images:
                if rows:
                    job.parts_NHWC.append(to_torch(images))
        except RuntimeError:
            self._chunker.failed()
            self._redo(job, rows)
        else:
            job.rows += rows
            self._chunker.passed()

    def _redo(self, job: _Job, rows: list[int]) -> None:
        """Decode the rows again without the images that DALI names, which go to Pillow."""
        left = set(rows)
        for piece, images_NHWC in self._retry.decode(rows, lambda piece: self._feed_of(job.batch, piece)):
            job.parts_NHWC.append(images_NHWC)
            job.rows += piece
            left.difference_update(piece)
        job.pillow.update({row: self._rescue_later(job.batch, row) for row in left})

    def _rescue_later(self, batch: EncodedBatch, row: int) -> Future[Rescued]:
        image, header = _image(batch, row), batch.headers[row]
        return self._pillow.submit(rescue, image, header, self._image_size, self._limits, self._apply_exif)

    def _finish(self, job: _Job) -> ImageBatch:
        pixels_SSC = []
        for row, future in sorted(job.pillow.items()):
            rescued = future.result()
            job.headers[row] = rescued.header
            if rescued.pixels_SSC is not None:
                pixels_SSC.append(rescued.pixels_SSC)
                job.rows.append(row)
        images_NHWC = assemble(
            job.parts_NHWC,
            pixels_SSC,
            batch_size=self._batch_size,
            image_size=self._image_size,
            device=self._device,
        )
        return ImageBatch(
            encoded=job.batch,
            headers=tuple(job.headers),
            images_NHWC=images_NHWC,
            rows_N=np.asarray(job.rows, np.int64),
        )


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


class Chunker:
    """Divides batches into chunks, bounded in images and in decoded bytes.

    `by_layout` gives each layout of JPEGs chunks of its own: the hardware decoder's buffers are made anew
    when the layout changes, which waits for all that runs on the GPU, the encoder included. Beside matrix
    products an H200 decoded 1,912 images/s where 5% were grey, and 3,632 grouped; 1,659 and 2,403 of a web
    mix. What the hardware doesn't decode (progressive JPEGs, PNG, WebP) is spread over all chunks: in chunks
    of their own progressive JPEGs took longer.

    An image that raises costs its whole chunk a second decode, so a chunk that fails halves the size of the
    next ones (down to `fewest_images`), and `_CALM` good ones in a row double it again: `images` is the most
    that the next chunk may have.
    """

    def __init__(
        self, most_images: int, most_bytes: int, fewest_images: int, *, by_layout: bool = False
    ) -> None:
        self._most_images, self._most_bytes = most_images, most_bytes
        self._by_layout = by_layout
        self._fewest_images = min(fewest_images, most_images)
        self.images = most_images
        self._good_in_a_row = 0

    def divide(self, headers: Sequence[ImageHeader]) -> list[list[int]]:
        """The rows that DALI decodes, ascending in each chunk. An image above the bytes' bound is alone."""
        rows = [row for row, header in enumerate(headers) if header.route is Route.DALI]
        chunks: list[list[int]] = []
        for group in _by_layout(rows, headers) if self._by_layout else [rows]:
            most = -(-len(group) // max(1, -(-len(group) // self.images)))  # chunks of about the same size
            room, start = 0, len(chunks)
            for row in group:
                size = 3 * headers[row].width * headers[row].height
                if len(chunks) == start or len(chunks[-1]) == most or size > room:
                    chunks.append([])
                    room = self._most_bytes
                chunks[-1].append(row)
                room -= size
        return chunks

    def failed(self) -> None:
        """A chunk raised."""
        self._good_in_a_row = 0
        self.images = max(self._fewest_images, self.images // 2)

    def passed(self) -> None:
        """A chunk came through."""
        self._good_in_a_row += 1
        if self._good_in_a_row % _CALM == 0:
            self.images = min(self._most_images, 2 * self.images)


def _by_layout(rows: list[int], headers: Sequence[ImageHeader]) -> list[list[int]]:
    """The rows in groups, one a layout; those without one are spread over the groups by size."""
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for row in rows:
        layout = headers[row].layout
        groups[ONE_COMPONENT if len(layout) == 1 else layout].append(row)
    anywhere = groups.pop(b"", [])
    large = [group for group in groups.values() if len(group) >= _FEWEST_ALIKE]
    small = [row for group in groups.values() if len(group) < _FEWEST_ALIKE for row in group]
    found = [*large, small] if small else large
    if not found:
        return [anywhere]
    ends = np.cumsum([len(group) for group in found]) / len(rows)
    # Steps of the golden ratio fill each group in proportion to its size, from all parts of the batch.
    places = np.arange(len(anywhere)) * 0.618034 % 1 * ends[-1]
    for row, group in zip(anywhere, np.searchsorted(ends, places, side="right"), strict=True):
        found[group].append(row)
    return [sorted(group) for group in found]
