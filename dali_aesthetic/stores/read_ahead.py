"""Prefetch: objects are downloaded in parts ahead of a sequential reader, within a byte budget.

`ReadAhead` crosses object borders; `RemoteFile` is one object, read front to back."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from dali_aesthetic.overlap import pool
from dali_aesthetic.stores.open import store_of
from dali_aesthetic.stores.store import ObjectChanged, ObjectInfo, Store, retried
from dali_aesthetic.types import Buffer

T = TypeVar("T")
DEFAULT_BYTES = 256 << 20
_CONNECTIONS = 16
_OBJECTS, _UNKNOWN = 16, 4
"""Objects looked ahead, and how many of them may have an unknown size."""
PART_BYTES = 8 << 20
_REREADS = 16
_REREAD_BYTES = 1 << 20
"""Re-read ranges before the released offset that are cached: their number, and the largest."""
_MOST_BYTES = 64 << 20


@dataclass(slots=True)
class _Coming(Generic[T]):
    """An item whose object is being prefetched: first its size, then its parts."""

    item: T
    url: str
    info: Future[ObjectInfo] | None
    file: RemoteFile | None = None


class ReadAhead:
    """Downloads objects in the order of `over`, holding at most `max_bytes` that are not yet released.

    One part of the object being read may exceed the budget, so the reader always makes progress. For use by
    one thread. A context manager: leaving it stops the downloads.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes = max_bytes
        self.stopped = False
        self.held = 0
        self._pool = pool(_CONNECTIONS, "download")
        self._coming: deque[_Coming[object]] = deque()
        self._more: Callable[[], bool] = lambda: False

    def over(
        self, items: Iterable[T], url_of: Callable[[T], str]
    ) -> Iterator[tuple[T, Callable[[], RemoteFile] | None]]:
        """Yields each item and a call that opens its object (None where `url_of` returns "").

        Items are taken from `items` ahead of the reader only while the budget has room for their objects. The
        call raises StoreError, FileNotFoundError or PermissionError.
        """
        iterator = iter(items)
        waiting: deque[_Coming[T]] = deque()

        def more() -> bool:
            for item in iterator:
                waiting.append(self._coming_of(item, url_of(item)))
                return True
            return False

        self._coming, self._more = waiting, more  # type: ignore[assignment]
        while waiting or more():
            first = waiting[0]
            yield first.item, partial(self._opened, first) if first.url else None
            waiting.popleft()
            if first.file is not None:
                first.file.close()

    def submit(self, call: Callable[[], Buffer]) -> Future[Buffer]:
        """See `Budget`."""
        return self._pool.submit(call)

    def take(self, num_bytes: int) -> None:
        """See `Budget`."""
        self.held += num_bytes

    def is_over(self) -> bool:
        """See `Budget`."""
        return self.held >= self.max_bytes

    def fill(self) -> None:
        """See `Budget`. Requests a few sizes before there is room for the bytes: each is a round trip."""
        unknown = 0
        for index in range(_OBJECTS):
            if index == len(self._coming) and not self._more():
                return
            coming = self._coming[index]
            if unknown or (coming.info is not None and not coming.info.done()):
                unknown += 1
                if unknown == _UNKNOWN:
                    return
            elif not self._start_parts(coming):
                return

    def _start_parts(self, coming: _Coming[object]) -> bool:
        """Whether every part of it was started, so that the next object may start."""
        if coming.info is None or coming.info.exception() is not None:
            return True
        if coming.file is None:
            coming.file = self._file(coming.url, coming.info.result())
        while not coming.file.is_all_started:
            if self.held + coming.file.next_bytes() > self.max_bytes:
                return False
            coming.file.start_next()
        return True

    def _coming_of(self, item: T, url: str) -> _Coming[T]:
        return _Coming(item, url, self._pool.submit(lambda: self._info(url)) if url else None)

    def _info(self, url: str) -> ObjectInfo:
        store, key = store_of(url)
        return retried(lambda: store.info(key), f"opening {url}", lambda: self.stopped)

    def _opened(self, coming: _Coming[T]) -> RemoteFile:
        assert coming.info is not None
        info = coming.info.result()
        if coming.file is None:
            coming.file = self._file(coming.url, info)
        return coming.file

    def _file(self, url: str, info: ObjectInfo) -> RemoteFile:
        store, key = store_of(url)
        return RemoteFile(store, key, info, self)

    def close(self) -> None:
        """Cancels the downloads."""
        self.stopped = True
        for coming in self._coming:
            if coming.file is not None:
                coming.file.close()
        # No waiting: a request in flight may have to run into its timeout.
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Budget(Protocol):
    """The budget and thread pool that a `RemoteFile` shares (`ReadAhead`)."""

    stopped: bool
    max_bytes: int

    def submit(self, call: Callable[[], Buffer]) -> Future[Buffer]:
        """Runs the call in a thread."""

    def fill(self) -> None:
        """Starts the downloads that fit the budget."""

    def take(self, num_bytes: int) -> None:
        """Adds to the bytes held or in flight (negative: released)."""

    def is_over(self) -> bool:
        """Whether the budget is used up."""


class RemoteFile:
    """An object as a read-only sequence of bytes: `len(file)`, `file[start:end]` (a memoryview).

    For one reader that goes forward and releases what it has finished (`release`). Released parts are
    dropped; views of them keep the bytes alive. Bytes before the released offset can still be read: they are
    requested again. All parts are of one version: another ETag is an error. Every access may raise
    StoreError. From a server without ranges the whole object is one part.
    """

    def __init__(self, store: Store, key: str, info: ObjectInfo, budget: Budget) -> None:
        self.url = f"{store.name}/{key}"
        self._store, self._key, self._info, self._budget = store, key, info, budget
        self._part_bytes = PART_BYTES if info.has_ranges else max(1, info.size)
        self._parts: dict[int, Future[Buffer]] = {}
        self._next = 0
        self._released = 0
        self._current, self._at, self._at_end = memoryview(b""), 0, 0
        self._rereads: OrderedDict[tuple[int, int], memoryview] = OrderedDict()

    def __len__(self) -> int:
        return self._info.size

    @property
    def has_ranges(self) -> bool:
        """Whether it is read in parts; otherwise all of it is in memory."""
        return self._info.has_ranges

    def __getitem__(self, place: slice) -> memoryview:
        start, end = place.start, place.stop
        # Called for every tar header, and nearly every slice lies in the current part.
        if end is None or start < self._at or end > self._at_end:
            start, end, _ = place.indices(len(self))
            if not self._go_to(start, end):
                return self._elsewhere(start, end)
        return self._current[start - self._at : end - self._at]

    def _go_to(self, start: int, end: int) -> bool:
        """Makes the part that holds `start` to `end` the current one; False where none does."""
        part = start // self._part_bytes
        if start >= end or part < self._released or part != (end - 1) // self._part_bytes:
            return False
        self._current = memoryview(self._part(part))
        self._at, self._at_end = self._range(part)
        return True

    def _elsewhere(self, start: int, end: int) -> memoryview:
        """Bytes of several parts, or of a released one."""
        if start >= end:
            return memoryview(b"")
        first, last = start // self._part_bytes, (end - 1) // self._part_bytes
        if first < self._released:
            return self._reread(start, end)
        return memoryview(b"".join(self._piece(part, start, end) for part in range(first, last + 1)))

    @property
    def is_all_started(self) -> bool:
        """Whether the download of every part has begun."""
        return self._next * self._part_bytes >= len(self)

    def start_next(self) -> None:
        """Begins the download of the next part."""
        part, self._next = self._next, self._next + 1
        start, end = self._range(part)
        self._budget.take(end - start)
        self._parts[part] = self._budget.submit(lambda: self._download(start, end))

    def next_bytes(self) -> int:
        """How many bytes `start_next` would ask for."""
        start, end = self._range(self._next)
        return end - start

    def release(self, before: int) -> None:
        """Drops the parts that end at or before the offset `before`, except the current one."""
        while (self._released + 1) * self._part_bytes <= before and self._released < self._next:
            self._drop(self._released)

    def finish(self) -> None:
        """After the last read: without conditional reads, raises ObjectChanged for a new version."""
        if not self._info.is_guarded:
            now = retried(lambda: self._store.info(self._key), self.url, self._is_stopped)
            if (now.size, now.tag) != (self._info.size, self._info.tag):
                raise ObjectChanged(f"{self.url} changed while it was read: run again when it is finished")

    def close(self) -> None:
        """Drops everything."""
        for part in list(self._parts):
            self._parts[part].cancel()
            self._drop(part)
        self._current, self._at, self._at_end = memoryview(b""), 0, 0
        self._rereads.clear()

    def _part(self, part: int) -> Buffer:
        if (part - self._next) * self._part_bytes > self._budget.max_bytes // 2:
            self._skip_to(part)
        while part >= self._next:
            # The part that the reader waits for always starts; over budget, the oldest parts are dropped.
            if self._budget.is_over() and self._released < self._next:
                self._drop(self._released)
            self.start_next()
        self._budget.fill()
        return self._parts[part].result()

    def _skip_to(self, part: int) -> None:
        """Skips a member too large for the budget. Its bytes, if requested after all, are re-read."""
        while self._released < self._next:
            self._drop(self._released)
        self._next = self._released = part

    def _piece(self, part: int, start: int, end: int) -> Buffer:
        offset = part * self._part_bytes
        if part < self._released:
            return self._download(max(start, offset), min(end, offset + self._part_bytes))
        return memoryview(self._part(part))[max(0, start - offset) : end - offset]

    def _drop(self, part: int) -> None:
        if self._parts.pop(part, None) is not None:
            start, end = self._range(part)
            self._budget.take(start - end)
        self._released = max(self._released, part + 1)

    def _reread(self, start: int, end: int) -> memoryview:
        """Bytes before the released offset: a header shared by all samples, or a search after damage."""
        if found := self._rereads.get((start, end)):
            self._rereads.move_to_end((start, end))
            return found
        steps = range(start, end, _MOST_BYTES)
        data = memoryview(b"".join(self._download(at, min(at + _MOST_BYTES, end)) for at in steps))
        if end - start <= _REREAD_BYTES:
            self._rereads[start, end] = data
            if len(self._rereads) > _REREADS:
                self._rereads.popitem(last=False)
        return data

    def _range(self, part: int) -> tuple[int, int]:
        return part * self._part_bytes, min((part + 1) * self._part_bytes, len(self))

    def _download(self, start: int, end: int) -> Buffer:
        what = f"reading bytes {start} to {end} of {self.url}"
        if self._info.has_ranges:
            return retried(
                lambda: self._store.read(self._key, start, end, self._info.tag), what, self._is_stopped
            )
        return retried(self._download_whole, f"reading {self.url}", self._is_stopped)[start:end]

    def _download_whole(self) -> memoryview:
        data, at = bytearray(len(self)), 0  # joined pieces would be in memory twice
        for piece in self._store.read_all(self._key):
            data[at : at + len(piece)] = piece
            at += len(piece)
        if at != len(self):
            raise OSError(f"{at} bytes came instead of {len(self)}")
        return memoryview(data).toreadonly()

    def _is_stopped(self) -> bool:
        return self._budget.stopped
