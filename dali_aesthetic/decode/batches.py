"""Batching: a stream of samples to batches that fill the encoder, across shard borders, and a batch to chunks
that are decoded together."""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from dali_aesthetic.decode.headers import Limits, probe
from dali_aesthetic.decode.jpeg import ENGINE_LAYOUTS, ONE_COMPONENT
from dali_aesthetic.decode.pipelines import CPU, PIXELS, is_engines
from dali_aesthetic.types import EncodedBatch, ImageHeader, Route, Sample, ShardEnd, Status

_OK, _NOBODY = Status.OK, Route.NOBODY
_ROWS_PER_IMAGE, _FILTERED_ROWS_PER_IMAGE = 4, 64
"""A batch also ends at this many rows per image, which bounds it in a run of bad samples; a prefilter may
leave few of many."""
_CHECKED = 32
_JUDGED = 1024
"""Samples that a prefilter judges at a time: a call holds the interpreter for about a millisecond, whatever
their number."""
_MOST_CPU_BYTES = 512 << 20
"""Decoded bytes of a chunk that the CPU decodes."""
_CALM = 32
"""Chunks in a row that must pass before the chunks grow again."""
Prefilter = Callable[[Sequence[Sample], Sequence[ImageHeader]], npt.NDArray[np.bool_]]
"""Marks the samples to decode, by their headers and their json."""


def fill_batches(
    stream: Iterable[Sample | ShardEnd],
    batch_size: int,
    limits: Limits,
    max_bytes: int | None = None,
    in_flight: int = 1,
    prefilter: Prefilter | None = None,
) -> Iterator[EncodedBatch]:
    """Check each sample's header and group the stream into batches of `batch_size` decodable images.

    A batch also ends before it would hold more than `max_bytes`; a larger sample is a batch of its own. Empty
    batches before a large one keep any `in_flight` consecutive batches within `in_flight * max_bytes`, or at
    one sample that alone exceeds it: that many batches are alive at a time. A view counts as the whole buffer
    that it keeps in memory, once for adjacent samples.

    Bad samples travel along and take no slot of the batch, and so do good ones that are not in `prefilter`.
    For its sake up to `max_bytes` more are read ahead.
    """
    rows_per_image = _FILTERED_ROWS_PER_IMAGE if prefilter else _ROWS_PER_IMAGE
    batch, recent = _Open(batch_size, limits, rows_per_image), _Recent(in_flight - 1)
    limit = sys.maxsize if max_bytes is None else max_bytes
    weigh = _Scale().weigh
    judged = _judged(stream, limits, prefilter, limit) if prefilter else ((item, None) for item in stream)
    for item, header in judged:
        if isinstance(item, ShardEnd):
            batch.ended.append(item)
            continue
        # Shards that end exactly at a batch's border commit with that batch, hence the check comes first.
        num_bytes = weigh(item)
        if batch.samples and (batch.is_full or batch.num_bytes + num_bytes > limit):
            recent.add(batch.num_bytes)
            yield batch.close()
            batch = _Open(batch_size, limits, rows_per_image)
        if not batch.samples:
            for _ in range(recent.num_empty(max(num_bytes, limit), in_flight * limit)):
                recent.add(0)
                yield EncodedBatch(samples=(), headers=())
        batch.add(item, num_bytes, header)
    if batch.samples or batch.ended:
        yield batch.close()


def check(sample: Sample, limits: Limits) -> ImageHeader:
    """The sample's image header, or what the reader already found wrong with it."""
    if sample.status is not _OK or sample.image is None:
        return ImageHeader(
            format="", width=0, height=0, route=Route.NOBODY, status=sample.status, message=sample.message
        )
    return probe(sample.image, limits)


def _judged(
    stream: Iterable[Sample | ShardEnd], limits: Limits, prefilter: Prefilter, limit: int
) -> Iterator[tuple[Sample | ShardEnd, ImageHeader | None]]:
    """The items of the stream in order, samples with their headers; `limit` bounds the bytes read ahead."""
    waiting, num_bytes, scale = deque[Sample | ShardEnd](), 0, _Scale()

    def judged() -> Iterator[tuple[Sample | ShardEnd, ImageHeader | None]]:
        samples = [item for item in waiting if isinstance(item, Sample)]
        headers = deque(_filtered(samples, [check(sample, limits) for sample in samples], prefilter))
        del samples  # a sample is let go of when it is handed on
        while waiting:
            item = waiting.popleft()
            yield item, None if isinstance(item, ShardEnd) else headers.popleft()

    for item in stream:
        weight = scale.weigh(item) if isinstance(item, Sample) else 0
        if waiting and (len(waiting) == _JUDGED or num_bytes + weight > limit):
            yield from judged()
            num_bytes = 0
        waiting.append(item)
        num_bytes += weight
    yield from judged()


def _filtered(
    samples: Sequence[Sample], headers: list[ImageHeader], prefilter: Prefilter
) -> list[ImageHeader]:
    """The headers, those of good samples that are not in `prefilter` with that status."""
    good = [row for row, header in enumerate(headers) if header.status is _OK]
    if good:
        passes = prefilter([samples[row] for row in good], [headers[row] for row in good])
        for row in np.array(good)[~passes].tolist():
            headers[row] = headers[row]._replace(status=Status.FILTERED, route=_NOBODY, message="")
    return headers


class _Scale:
    """Weighs samples by the memory that they hold."""

    def __init__(self) -> None:
        self._base: object = None

    def weigh(self, sample: Sample) -> int:
        """The bytes of the buffers that the sample is the first one to hold, and of its key."""
        total, base = len(sample.key), self._base
        for buffer in sample.entries or (sample.image, sample.sidecar):
            if isinstance(buffer, memoryview):
                if buffer.obj is not base:
                    base = buffer.obj
                    total += memoryview(base).nbytes
            elif buffer is not None:
                total += len(buffer)
        self._base = base
        return total


class _Recent:
    """The bytes of the last `length` batches."""

    def __init__(self, length: int) -> None:
        self._bytes = deque([0] * length, length)

    def add(self, num_bytes: int) -> None:
        """Notes the next batch."""
        self._bytes.append(num_bytes)

    def num_empty(self, wanted: int, limit: int) -> int:
        """How many empty batches must come before one of `wanted` bytes, so that all stay within `limit`."""
        total = sum(self._bytes)
        for count, oldest in enumerate(self._bytes):
            if total + wanted <= limit or not total:
                return count
            total -= oldest
        return len(self._bytes)


class _Open:
    """A batch that is being filled.

    Samples are checked `_CHECKED` at a time. One by one, in turn with reading them, takes a third longer: the
    check's code and data and the reader's drive each other from the caches.
    """

    def __init__(self, batch_size: int, limits: Limits, rows_per_image: int) -> None:
        self._limits = limits
        self.samples: list[Sample] = []
        self.headers: list[ImageHeader] = []
        self.ended: list[ShardEnd] = []
        self.num_bytes = 0
        self._known: list[ImageHeader | None] = []
        self._room, self._rows = batch_size, rows_per_image * batch_size
        self._next_check = min(_CHECKED, batch_size)
        self.is_full = False

    def add(self, sample: Sample, num_bytes: int, header: ImageHeader | None = None) -> None:
        self.samples.append(sample)
        self._known.append(header)
        self.num_bytes += num_bytes
        if len(self.samples) == self._next_check:
            self._check()

    def _check(self) -> None:
        """Checks what came since the last time; a batch is full by its images or by its rows."""
        start = len(self.headers)
        pairs = zip(self.samples[start:], self._known[start:], strict=True)
        headers = [known or check(sample, self._limits) for sample, known in pairs]
        self.headers += headers
        self._room -= sum(header.route is not _NOBODY for header in headers)
        left = min(self._room, self._rows - len(self.headers))
        self.is_full = not left
        self._next_check += min(_CHECKED, left)

    def close(self) -> EncodedBatch:
        self._check()
        return EncodedBatch(samples=tuple(self.samples), headers=tuple(self.headers), ended=tuple(self.ended))


class Chunker:
    """Divides batches into chunks, bounded in images and in decoded bytes.

    `by_layout` gives each layout of JPEGs chunks of its own, and one more group what the CPU decodes. What is
    of the formats `coded` is `PIXELS`, in the last chunks.

    An image that raises costs its whole chunk a second decode, so a chunk that fails halves the size of the
    next ones (down to `fewest_images`), and `_CALM` good ones in a row double it again: `images` is the most
    that the next chunk may have.
    """

    def __init__(
        self,
        most_images: int,
        most_bytes: int,
        fewest_images: int,
        *,
        by_layout: bool = False,
        coded: Collection[str] = (),
    ) -> None:
        self._most_images, self._most_bytes = most_images, most_bytes
        self._by_layout, self._coded = by_layout, coded
        self._fewest_images = min(fewest_images, most_images)
        self.images = most_images
        self._good_in_a_row = 0

    def divide(self, headers: Sequence[ImageHeader]) -> list[tuple[bytes, list[int]]]:
        """The rows that DALI decodes, ascending in each chunk, with the chunk's layout.

        An image above the bytes' bound is alone.
        """
        groups: defaultdict[bytes, list[int]] = defaultdict(list)
        for row, header in enumerate(headers):
            if header.route is Route.DALI:
                groups[self._layout_of(header)].append(row)
        pixels = {PIXELS: groups.pop(PIXELS)} if PIXELS in groups else {}
        chunks: list[tuple[bytes, list[int]]] = []
        for layout, group in (groups | pixels).items():
            most = -(-len(group) // max(1, -(-len(group) // self.images)))  # chunks of about the same size
            most_bytes = self._most_bytes if is_engines(layout) else min(self._most_bytes, _MOST_CPU_BYTES)
            room = 0
            rows: list[int] = []
            for row in group:
                size = 3 * headers[row].width * headers[row].height
                if not rows or len(rows) == most or size > room:
                    rows, room = [], most_bytes
                    chunks.append((layout, rows))
                rows.append(row)
                room -= size
        return chunks

    def _layout_of(self, header: ImageHeader) -> bytes:
        """What the JPEG engine must know to decode the image as its neighbours, or `CPU` or `PIXELS`."""
        if header.format in self._coded:
            return PIXELS
        layout = ONE_COMPONENT if len(header.layout) == 1 else header.layout
        return layout if self._by_layout and layout in ENGINE_LAYOUTS else CPU

    def failed(self) -> None:
        """A chunk raised."""
        self._good_in_a_row = 0
        self.images = max(self._fewest_images, self.images // 2)

    def passed(self) -> None:
        """A chunk came through."""
        self._good_in_a_row += 1
        if self._good_in_a_row % _CALM == 0:
            self.images = min(self._most_images, 2 * self.images)
