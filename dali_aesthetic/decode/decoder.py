"""Batches of encoded images to batches of pixels: DALI for what it can, Pillow beside it for the rest.

Encoder batches go through DALI in chunks, bounded in images and in decoded bytes, so that a batch of large
photos can't take all of the memory. A chunk that raises is redone in small pieces, and the piece that still
raises image by image through Pillow: one bad image costs itself, never its neighbours.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dali_aesthetic.decode.geometry import resize_steps
from dali_aesthetic.decode.graph import Feed, Source, build_pipeline, num_passes
from dali_aesthetic.decode.handoff import assemble, to_torch
from dali_aesthetic.decode.pillow import allow_large_images
from dali_aesthetic.decode.rescue import Rescued, rescue
from dali_aesthetic.overlap import pool
from dali_aesthetic.types import Buffer, EncodedBatch, ImageBatch, ImageHeader, Route

_PIECE = 16
_PREFETCH = 2


@dataclass(slots=True)
class _Job:
    """One batch on its way: its rows in DALI chunks, and what Pillow is decoding of it meanwhile."""

    batch: EncodedBatch
    headers: list[ImageHeader]
    chunks: list[list[int]]
    pillow: dict[int, Future[Rescued]]
    parts_NHWC: list[torch.Tensor] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


class DaliDecoder:
    """Decodes to uint8 RGB squares of `image_size` on `device`, padded to `batch_size` images."""

    def __init__(
        self, *, image_size: int, batch_size: int, device: torch.device, num_threads: int, max_pixels: int
    ) -> None:
        allow_large_images()
        self._image_size, self._batch_size, self._device = image_size, batch_size, device
        self._max_pixels, self._num_threads = max_pixels, num_threads
        on_gpu = device.type == "cuda"
        self._chunk_images = min(batch_size, 512 if on_gpu else 64)
        self._chunk_bytes = (2 << 30) if on_gpu else (512 << 20)
        self._device_id = (device.index or 0) if on_gpu else None
        self._pillow = pool(num_threads, "pillow")
        self._feeds: Iterator[Feed] = iter(())
        self._jobs: deque[_Job] = deque()
        self._failure: BaseException | None = None
        self._pipeline = self._build(self._next_feed, self._chunk_images, _PREFETCH)
        self._in_flight = 0
        self._retry_feed: Feed | None = None
        self._retry: Any = None

    def decode(self, batches: Iterable[EncodedBatch]) -> Iterator[ImageBatch]:
        """One `ImageBatch` a batch, in order. A failure of `batches` is raised after what came before it."""
        self._feeds, self._failure = self._feed(iter(batches)), None
        self._pipeline.reset()
        self._pipeline.schedule_run()
        try:
            while self._jobs:
                job = self._jobs.popleft()
                for chunk in job.chunks:
                    self._collect(job, chunk)
                    self._pipeline.schedule_run()
                yield self._finish(job)
        finally:
            self._drain()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop the Pillow threads. DALI's own end with the pipeline."""
        self._pillow.shutdown(cancel_futures=True)

    def _build(self, source: Source, max_batch: int, prefetch: int) -> Any:
        return build_pipeline(
            source,
            max_batch=max_batch,
            num_threads=self._num_threads,
            device_id=self._device_id,
            prefetch=prefetch,
        )

    def _next_feed(self) -> Feed:
        """DALI's source: must not raise, so a failure upstream ends the feed and is kept for later."""
        try:
            feed = next(self._feeds)
        except StopIteration:
            raise
        except BaseException as error:
            self._failure = error
            raise StopIteration from None
        self._in_flight += 1
        return feed

    def _feed(self, batches: Iterator[EncodedBatch]) -> Iterator[Feed]:
        """Queue a job for each batch and yield its chunks in the form the graph takes."""
        for batch in batches:
            job = self._start(batch)
            self._jobs.append(job)
            for chunk in job.chunks:
                yield self._feed_of(batch, chunk)

    def _start(self, batch: EncodedBatch) -> _Job:
        pillow = {
            row: self._rescue_later(batch, row)
            for row, header in enumerate(batch.headers)
            if header.route is Route.PILLOW
        }
        chunks = self._chunks(batch.headers)
        return _Job(batch=batch, headers=list(batch.headers), chunks=chunks, pillow=pillow)

    def _chunks(self, headers: Sequence[ImageHeader]) -> list[list[int]]:
        chunks: list[list[int]] = []
        room = 0
        for row, header in enumerate(headers):
            if header.route is not Route.DALI:
                continue
            size = 3 * header.width * header.height
            if not chunks or len(chunks[-1]) == self._chunk_images or size > room:
                chunks.append([])
                room = self._chunk_bytes
            chunks[-1].append(row)
            room -= size
        return chunks

    def _feed_of(self, batch: EncodedBatch, rows: list[int]) -> Feed:
        sizes = [(batch.headers[row].width, batch.headers[row].height) for row in rows]
        images = [np.frombuffer(_image(batch, row), np.uint8) for row in rows]
        return images, *resize_steps(sizes, self._image_size, num_passes(self._device_id))

    def _collect(self, job: _Job, rows: list[int]) -> None:
        """Take the chunk's pixels from DALI, or redo the chunk where DALI raised."""
        self._in_flight -= 1
        try:
            (images,) = self._pipeline.share_outputs()
            job.parts_NHWC.append(to_torch(images))
            job.rows += rows
        except RuntimeError:
            self._redo(job, rows)
        finally:
            self._pipeline.release_outputs()

    def _redo(self, job: _Job, rows: list[int]) -> None:
        """Halve the damage: small pieces through DALI again, a piece that still raises through Pillow."""
        self._retry = self._retry or self._build(self._next_retry, _PIECE, 1)
        for start in range(0, len(rows), _PIECE):
            piece = rows[start : start + _PIECE]
            self._retry_feed = self._feed_of(job.batch, piece)
            try:
                (images,) = self._retry.run()
                job.parts_NHWC.append(to_torch(images))
                job.rows += piece
            except RuntimeError:
                job.pillow.update({row: self._rescue_later(job.batch, row) for row in piece})

    def _next_retry(self) -> Feed:
        if self._retry_feed is None:
            raise StopIteration
        return self._retry_feed

    def _rescue_later(self, batch: EncodedBatch, row: int) -> Future[Rescued]:
        image, header = _image(batch, row), batch.headers[row]
        return self._pillow.submit(rescue, image, header, self._image_size, self._max_pixels)

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

    def _drain(self) -> None:
        """Leave the pipeline empty, so that the next call's outputs are its own."""
        self._feeds = iter(())
        self._jobs.clear()
        while self._in_flight:
            self._in_flight -= 1
            with contextlib.suppress(RuntimeError):
                self._pipeline.share_outputs()
            self._pipeline.release_outputs()
        self._pipeline.schedule_run()


def _image(batch: EncodedBatch, row: int) -> Buffer:
    image = batch.samples[row].image
    assert image is not None, "a sample without an image has no route"
    return image
