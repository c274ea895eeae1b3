"""The bytes of one file: mapped where it is local and large, read whole otherwise."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any

import fsspec

from dali_aesthetic.types import Buffer

_MAP_FROM_BYTES = 1 << 20
_PIECE = 16 << 20


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """The most bytes of a sample's member (or of a folder's file), of a tar, and of what comes over the
    network, which is held in memory whole."""

    max_member_bytes: int = 1 << 30
    max_tar_bytes: int = 1 << 40
    max_download_bytes: int = 1 << 40


DEFAULT_LIMITS = ReadLimits()


class TooManyBytes(OSError):
    """A file is above its limit; it was not read."""


def is_url(path: str) -> bool:
    """Whether `path` has a scheme, like `s3://`."""
    return "://" in path


def open_buffer(path: str, max_bytes: int, max_download_bytes: int = 1 << 40) -> Buffer:
    """The content of a file or URL. Raises OSError, and for URLs whatever their file system raises.

    Raises TooManyBytes above `max_bytes`, for a URL also above `max_download_bytes`.

    A large local file is mapped, not read; the mapping ends with the last view of it, so that views may
    outlive the reader. The file must not shrink meanwhile: reading past a new end kills the process.
    """
    if is_url(path):
        with fsspec.open(path, "rb") as file:
            return _read_whole(path, file, min(max_bytes, max_download_bytes))
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


def _read_whole(path: str, file: Any, limit: int) -> bytes:
    """In pieces: a server may not say how much there is."""
    pieces: list[bytes] = []
    size = 0
    while piece := file.read(_PIECE):
        pieces.append(piece)
        size += len(piece)
        _check_size(path, size, limit)
    return b"".join(pieces)


def has_changed(path: str, size: int) -> bool:
    """Whether a local file no longer has the size that it was opened with."""
    try:
        return not is_url(path) and os.stat(path).st_size != size
    except OSError:
        return False  # removed: a mapping of it stays whole


def _check_size(path: str, size: int, limit: int) -> None:
    if size > limit:
        raise TooManyBytes(f"{path} has more than the {limit:,} bytes that its limit allows")
