"""Downloads ahead of the reader, across the borders of objects, and never more than a number of bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar

from dali_aesthetic.overlap import pool
from dali_aesthetic.stores.retry import retried
from dali_aesthetic.stores.store import ObjectInfo, store_of
from dali_aesthetic.stores.stream import RemoteFile
from dali_aesthetic.types import Buffer

T = TypeVar("T")
DEFAULT_BYTES = 256 << 20
_CONNECTIONS = 16
_OBJECTS, _UNKNOWN = 16, 4


@dataclass(slots=True)
class _Coming(Generic[T]):
    """An item whose object was asked for: first its size, then, in parts, its bytes."""

    item: T
    url: str
    info: Future[ObjectInfo] | None
    file: RemoteFile | None = None


class ReadAhead:
    """Downloads objects in the order of `over`, holding at most `max_bytes` that the reader is not done with.

    One part of the object being read is downloaded even above that, so that the reader always goes on. Used
    by one thread; a context manager that stops its downloads at the end.
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
        """Each item in order, and a call that opens its object; None where `url_of` gives no URL ("").

        Items are taken from `items` ahead of the reader only while there is room to download theirs. The
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
        """See `Budget`. Asks for a few sizes before there is room for the bytes: it takes a round trip."""
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
        """Whether all of it is on its way, so that there may be room for what comes behind it."""
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
        """Gives up what is on its way."""
        self.stopped = True
        for coming in self._coming:
            if coming.file is not None:
                coming.file.close()
        # Not waited for: a request under way may have to run into its timeout.
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
