"""Whole files by location, local or remote: read, list, create, upload, mirror. Remote calls are retried."""

from __future__ import annotations

import errno
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dali_aesthetic.stores.location import is_url, join
from dali_aesthetic.stores.open import store_of
from dali_aesthetic.stores.store import NoConditions, ObjectInfo, Store, retried
from dali_aesthetic.types import Buffer

_STEP = 16 << 20


def read_bytes(location: str | os.PathLike[str]) -> bytes:
    """The content of a small file. Raises FileNotFoundError, PermissionError or another OSError."""
    text = os.fspath(location)
    return bytes(read_whole(text)) if is_url(text) else Path(text).read_bytes()


def read_whole(url: str, check: Callable[[int], None] = lambda size: None) -> Buffer:
    """The content of an object. `check` gets its size in bytes before the download and may raise."""
    store, key = store_of(url)
    info = _info(store, key)
    check(info.size)
    if not info.has_ranges:
        return retried(lambda: b"".join(store.read_all(key)), f"reading {url}")
    steps = range(0, info.size, _STEP)
    return b"".join(_read(store, key, info, at, min(at + _STEP, info.size)) for at in steps)


def _info(store: Store, key: str) -> ObjectInfo:
    return retried(lambda: store.info(key), f"opening {store.name}/{key}")


def _read(store: Store, key: str, info: ObjectInfo, start: int, end: int) -> Buffer:
    what = f"reading {store.name}/{key}"
    return retried(lambda: store.read(key, start, end, info.tag), what)


def exists(location: str | os.PathLike[str]) -> bool:
    """Whether there is such a file or object."""
    text = os.fspath(location)
    if not is_url(text):
        return os.path.exists(text)
    try:
        _info(*store_of(text))
    except FileNotFoundError:
        return False
    return True


def list_files(folder: str | os.PathLike[str], suffix: str = "") -> Iterator[str]:
    """Paths below `folder`, relative to it, with `/`, from one listing; none for a missing folder.

    Raises StoreUnusable for a missing bucket, PermissionError or another OSError.
    """
    text = os.fspath(folder)
    if is_url(text):
        store, prefix = store_of(text)
        cut = len(prefix.rstrip("/")) + 1 if prefix.strip("/") else 0
        found = retried(lambda: [key[cut:] for key, _ in store.list(prefix)], f"listing {text}")
        yield from (name for name in found if name.endswith(suffix))
        return
    for root, _, names in os.walk(text):
        relative = os.path.relpath(root, text)
        before = "" if relative == "." else relative.replace(os.sep, "/") + "/"
        yield from (before + name for name in names if name.endswith(suffix))


def open_file(location: str | os.PathLike[str], max_download_bytes: int = 1 << 40) -> IO[bytes]:
    """A seekable file object, for libraries that need one (Parquet).

    Raises OSError where a server without Range requests has more than `max_download_bytes`.
    """
    text = os.fspath(location)
    if not is_url(text):
        return open_regular(text)
    store, key = store_of(text)
    info = _info(store, key)
    if not info.has_ranges:
        if info.size > max_download_bytes:
            raise OSError(
                f"its server sends whole files only, and it has {info.size:,} bytes, more than the "
                f"{max_download_bytes:,} that --memory-budget leaves for one: raise it, or download the file"
            )
        return io.BytesIO(read_whole(text))
    return io.BufferedReader(_RemoteIO(store, key, info), 1 << 20)


def open_regular(path: str) -> IO[bytes]:
    """A local file. Raises OSError, also for a pipe, which would wait for a writer, and for a device."""
    return open(path, "rb", opener=_opened)


def _opened(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket and no file", path)
    return descriptor


def create(url: str, content: bytes) -> None:
    """Makes an object unless there is one.

    Without conditional writes the last of several concurrent callers wins.
    """
    store, key = store_of(url)
    try:
        retried(lambda: store.create(key, content), f"writing {url}")
    except FileExistsError:
        return
    except NoConditions:
        if not exists(url):
            retried(lambda: store.put(key, content), f"writing {url}")


@contextmanager
def mirrored(folder: str, names: Iterable[str]) -> Iterator[Path]:
    """A temporary local copy of the files `names` of the URL `folder`; a local folder is used as it is.

    Missing files are left out. Raises StoreError and PermissionError.
    """
    if not is_url(folder):
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="dali-aesthetic-") as text:
        root = Path(text)
        for name in names:
            try:
                content = read_bytes(join(folder, name))
            except FileNotFoundError:
                continue
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield root


class Uploader:
    """Makes objects below the URL `folder`, each whole or not at all."""

    def __init__(self, folder: str) -> None:
        self._folder, self._stopped = folder, False
        store_of(folder)

    def put(self, name: str, content: Path | bytes) -> None:
        """Uploads `FOLDER/NAME`. Raises StoreError or PermissionError naming it."""
        store, key = store_of(join(self._folder, name))
        retried(lambda: store.put(key, content), f"writing {store.name}/{key}", lambda: self._stopped)

    def stop(self) -> None:
        """Ends all retries: a failure from here on is final."""
        self._stopped = True


class _RemoteIO(io.RawIOBase):
    """Random access to an object."""

    def __init__(self, store: Store, key: str, info: ObjectInfo) -> None:
        self._store, self._key, self._info = store, key, info
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._info.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        end = min(self._at + len(buffer), self._at + _STEP, self._info.size)
        if end <= self._at:
            return 0
        data = _read(self._store, self._key, self._info, self._at, end)
        buffer[: len(data)] = data
        self._at = end
        return len(data)
