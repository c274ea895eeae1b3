"""One object read front to back in parts that are downloaded ahead of the reader."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from dali_aesthetic.stores.errors import ObjectChanged
from dali_aesthetic.stores.retry import retried
from dali_aesthetic.stores.store import ObjectInfo, Store
from dali_aesthetic.types import Buffer

PART_BYTES = 8 << 20
_OTHER_PLACES = 16
_OTHER_BYTES = 1 << 20
_MOST_BYTES = 64 << 20


class Budget(Protocol):
    """What a stream needs of those who share the downloads (`ReadAhead`)."""

    stopped: bool
    max_bytes: int

    def submit(self, call: Callable[[], Buffer]) -> Future[Buffer]:
        """Has a thread make the call."""

    def fill(self) -> None:
        """Starts the downloads that there is room for."""

    def take(self, num_bytes: int) -> None:
        """Counts bytes that are held or on their way (negative: no longer)."""

    def is_over(self) -> bool:
        """Whether more is held than there is room for."""


class RemoteFile:
    """An object as a read-only sequence of bytes: `len(file)`, `file[start:end]` (a memoryview).

    Made for one reader that goes forward and says what it has done with (`release`). Its parts are dropped
    then; views of them keep the bytes alive. A place before that may still be read: it is asked for anew. All
    of it is one version of the object: another ETag is an error. Every access may raise StoreError.

    Of a server without ranges the whole object is one part.
    """

    def __init__(self, store: Store, key: str, info: ObjectInfo, budget: Budget) -> None:
        self.url = f"{store.name}/{key}"
        self._store, self._key, self._info, self._budget = store, key, info, budget
        self._part_bytes = PART_BYTES if info.has_ranges else max(1, info.size)
        self._parts: dict[int, Future[Buffer]] = {}
        self._next = 0
        self._released = 0
        self._current, self._at, self._at_end = memoryview(b""), 0, 0
        self._others: OrderedDict[tuple[int, int], memoryview] = OrderedDict()

    def __len__(self) -> int:
        return self._info.size

    @property
    def has_ranges(self) -> bool:
        """Whether it comes in parts; else it is in memory whole."""
        return self._info.has_ranges

    def __getitem__(self, place: slice) -> memoryview:
        start, end = place.start, place.stop
        # Nearly every slice lies in the part of the one before it: this is asked for every header.
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
        """Bytes of several parts, or of one that was released."""
        if start >= end:
            return memoryview(b"")
        first, last = start // self._part_bytes, (end - 1) // self._part_bytes
        if first < self._released:
            return self._other_place(start, end)
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
        """Drops the parts that end at or before the offset `before`; the current one stays at hand."""
        while (self._released + 1) * self._part_bytes <= before and self._released < self._next:
            self._drop(self._released)

    def finish(self) -> None:
        """Behind the last read: raises ObjectChanged where a store without conditions has another version."""
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
        self._others.clear()

    def _part(self, part: int) -> Buffer:
        if (part - self._next) * self._part_bytes > self._budget.max_bytes // 2:
            self._skip_to(part)
        while part >= self._next:
            # What the reader waits for is fetched whatever is held; then the oldest parts make room.
            if self._budget.is_over() and self._released < self._next:
                self._drop(self._released)
            self.start_next()
        self._budget.fill()
        return self._parts[part].result()

    def _skip_to(self, part: int) -> None:
        """Past a member too large to be held: if it is asked for after all, it is an other place."""
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

    def _other_place(self, start: int, end: int) -> memoryview:
        """Bytes before what was released: a header that holds for all samples, or a search behind damage."""
        if found := self._others.get((start, end)):
            self._others.move_to_end((start, end))
            return found
        steps = range(start, end, _MOST_BYTES)
        data = memoryview(b"".join(self._download(at, min(at + _MOST_BYTES, end)) for at in steps))
        if end - start <= _OTHER_BYTES:
            self._others[start, end] = data
            if len(self._others) > _OTHER_PLACES:
                self._others.popitem(last=False)
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
        data = b"".join(self._store.read_all(self._key))
        if len(data) != len(self):
            raise OSError(f"{len(data)} bytes came instead of {len(self)}")
        return memoryview(data)

    def _is_stopped(self) -> bool:
        return self._budget.stopped
