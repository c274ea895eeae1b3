"""The bytes of one file: mapped where it is local and large, streamed or read whole where it is remote."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

from dali_aesthetic.stores.access import read_whole
from dali_aesthetic.stores.errors import LASTING, StoreError
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.stores.read_ahead import DEFAULT_BYTES
from dali_aesthetic.stores.stream import RemoteFile
from dali_aesthetic.types import Buffer

__all__ = ["DEFAULT_LIMITS", "ReadLimits", "TooManyBytes", "View", "has_changed", "is_url", "open_buffer"]
View = memoryview | RemoteFile
"""What a shard is read from, by slices: all of it in memory or mapped, or streamed from a store."""
READ_ERRORS = (StoreError, *LASTING)
"""What reading a `View` may raise."""
_MAP_FROM_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """The most bytes of a sample's member (or of a folder's file), of a tar, of an object that its server
    sends only whole, and of what is downloaded ahead of the reader."""

    max_member_bytes: int = 1 << 30
    max_tar_bytes: int = 1 << 40
    max_download_bytes: int = 1 << 40
    read_ahead_bytes: int = DEFAULT_BYTES


DEFAULT_LIMITS = ReadLimits()


class TooManyBytes(OSError):
    """A file is above its limit; it was not read."""


def open_buffer(path: str, max_bytes: int, max_download_bytes: int = 1 << 40) -> Buffer:
    """The content of a file or URL. Raises OSError, and StoreUnusable (ValueError) for URLs.

    Raises TooManyBytes above `max_bytes`, for a URL also above `max_download_bytes`.

    A large local file is mapped, not read; the mapping ends with the last view of it, so that views may
    outlive the reader. The file must not shrink meanwhile: reading past a new end kills the process.
    """
    if is_url(path):
        limit = min(max_bytes, max_download_bytes)
        return read_whole(path, check=lambda size: _check_size(path, size, limit))
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        size = os.fstat(descriptor).st_size
        _check_size(path, size, max_bytes)
        if size < _MAP_FROM_BYTES:
            with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
                return file.readall() or b""
        mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    if hasattr(mmap, "MADV_SEQUENTIAL"):
        mapped.madvise(mmap.MADV_SEQUENTIAL)
    return memoryview(mapped)


def has_changed(path: str, size: int) -> bool:
    """Whether a local file no longer has the size that it was opened with."""
    try:
        return not is_url(path) and os.stat(path).st_size != size
    except OSError:
        return False  # removed: a mapping of it stays whole


def check_remote(file: RemoteFile, limits: ReadLimits) -> None:
    """Raises TooManyBytes for a tar above its limit; where it would be in memory whole, above that limit."""
    whole = limits.max_download_bytes if not file.has_ranges else limits.max_tar_bytes
    _check_size(file.url, len(file), min(whole, limits.max_tar_bytes))


def _check_size(path: str, size: int, limit: int) -> None:
    if size > limit:
        raise TooManyBytes(f"{path} has more than the {limit:,} bytes that its limit allows")
