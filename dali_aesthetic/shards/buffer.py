"""The bytes of one file: mapped where it is local and large, read whole otherwise."""

from __future__ import annotations

import mmap
import os

import fsspec

from dali_aesthetic.types import Buffer

_MAP_FROM_BYTES = 1 << 20


def is_url(path: str) -> bool:
    """Whether `path` has a scheme, like `s3://`."""
    return "://" in path


def open_buffer(path: str) -> Buffer:
    """The content of a file or URL. Raises OSError, and for URLs whatever their file system raises.

    A large local file is mapped, not read; the mapping ends with the last view of it, so that views may
    outlive the reader. The file must not shrink meanwhile: reading past a new end kills the process.
    """
    if is_url(path):
        with fsspec.open(path, "rb") as file:
            return bytes(file.read())
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        size = os.fstat(descriptor).st_size
        if size < _MAP_FROM_BYTES:
            with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
                return file.readall() or b""
        mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    if hasattr(mmap, "MADV_SEQUENTIAL"):
        mapped.madvise(mmap.MADV_SEQUENTIAL)
    return memoryview(mapped)
