"""The bytes of one file: small ones whole, large ones in parts."""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from dali_aesthetic.stores.access import open_regular, read_whole
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.stores.read_ahead import DEFAULT_BYTES, RemoteFile
from dali_aesthetic.stores.store import LASTING
from dali_aesthetic.types import Buffer

READ_ERRORS = (OSError, *LASTING)
"""The errors that reading a `View` may raise."""
_AHEAD_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """The most bytes of a sample's members (or of an image file and its sidecars) together, of a tar, of an
    object from a server without Range requests, of the read-ahead, and of a page of Parquet with its
    compressed form."""

    max_member_bytes: int = 1 << 30
    max_tar_bytes: int = 1 << 40
    max_download_bytes: int = 1 << 40
    read_ahead_bytes: int = DEFAULT_BYTES
    max_page_bytes: int = 1 << 32

    @classmethod
    def of(cls, max_member_mb: int = 1 << 10, max_tar_gb: int = 1 << 10) -> Self:
        """In the options' units, MiB and GiB."""
        return cls(max_member_bytes=max_member_mb << 20, max_tar_bytes=max_tar_gb << 30)


DEFAULT_LIMITS = ReadLimits()


class TooManyBytes(OSError):
    """A file is larger than its limit; it was not read."""


def open_local(path: str, max_bytes: int) -> View:
    """A local tar: small ones whole, others in parts as they are read. Raises OSError.

    Raises TooManyBytes above `max_bytes`.
    """
    open_regular(path).close()
    file = LocalFile(path)
    try:
        _check_size(path, len(file), max_bytes)
        if len(file) > file.part_bytes:
            return file
        whole = file[0 : len(file)]
    except BaseException:
        file.close()
        raise
    file.close()
    return whole


def read_file(path: str, max_bytes: int, max_download_bytes: int = 1 << 40) -> Buffer:
    """The whole content of a file or URL. Raises OSError, and StoreUnusable (ValueError) for URLs.

    Raises TooManyBytes above `max_bytes`, for a URL also above `max_download_bytes`.
    """
    if is_url(path):
        limit = min(max_bytes, max_download_bytes)
        return read_whole(path, check=lambda size: _check_size(path, size, limit))
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        _check_size(path, size, max_bytes)
        try:
            data = file.read(size + 1)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error  # a read's own error names no file
    if len(data) > size:
        raise OSError(errno.EBUSY, "it grew while it was read", path)
    return data


def map_file(path: str) -> memoryview:
    """Maps a local file of this program's own that nobody writes to any more.

    The mapping ends with the last view of it. Reading past the end of a file that was cut short kills the
    process. Raises OSError.
    """
    with open(path, "rb", buffering=0) as file:
        if not os.fstat(file.fileno()).st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def as_view(buffer: Buffer | View) -> View:
    """`buffer` as something that can be sliced without a copy."""
    return buffer if isinstance(buffer, RemoteFile | LocalFile) else memoryview(buffer)


def has_changed(path: str, size: int) -> bool:
    """Whether a local file no longer has the size that it was opened with."""
    try:
        return not is_url(path) and os.stat(path).st_size != size
    except OSError:
        return False  # removed: an open file stays readable


def check_remote(file: RemoteFile, limits: ReadLimits) -> None:
    """Raises TooManyBytes for a tar above its limit, or above the lower one of an object held in memory."""
    _check_size(file.url, len(file), limits.max_tar_bytes)
    if not file.has_ranges and len(file) > limits.max_download_bytes:
        raise TooManyBytes(
            f"its server sends whole files only, and it has {len(file):,} bytes, more than the "
            f"{limits.max_download_bytes:,} that --memory-budget leaves for one: raise it, or download it"
        )


def _check_size(path: str, size: int, limit: int) -> None:
    if size > limit:
        raise TooManyBytes(f"{path} has more than the {limit:,} bytes that its limit allows")


class FileShrank(OSError):
    """A file ended before the size that it had when it was opened."""


class LocalFile:
    """Read-only: `len(file)`, `file[start:end]` of offsets from its start (a memoryview that outlives it).

    Made for one reader that goes forward: a slice in the part at hand costs nothing, one behind it reads the
    next part, one before it only what it asks for. The system is told what comes next.

    Not mapped, though that saves a copy. A page of a mapping that isn't in memory is read with the
    interpreter lock held, which stops every thread of the process. And one that can't be read, since the file
    was cut short or a network file system failed, ends the process; here it is an OSError.
    """

    part_bytes = 2 << 20

    def __init__(self, path: str) -> None:
        """Opens it. Raises OSError."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            self._size = os.fstat(self._descriptor).st_size
        except BaseException:
            self.close()
            raise
        self._part, self._at, self._at_end = memoryview(b""), 0, 0
        self._announced = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: slice) -> memoryview:
        """Raises OSError, `FileShrank` where the file ends before it did."""
        start, end = place.start, place.stop
        # Nearly every slice lies in the part of the one before it: this is asked for every header.
        if start is None or end is None or not self._at <= start <= end <= self._at_end:
            start, end, _ = place.indices(self._size)
            if start >= end:
                return memoryview(b"")
            if start < self._at or end - start > self.part_bytes:
                return memoryview(self._read(start, end))
            if end > self._at_end:
                self._go_to(start)
        return self._part[start - self._at : end - self._at]

    def close(self) -> None:
        """Closes the file; views of it stay."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _go_to(self, start: int) -> None:
        end = min(start + self.part_bytes, self._size)
        self._part = memoryview(self._read(start, end))
        self._at, self._at_end = start, end
        self._announce(end)

    def _announce(self, start: int) -> None:
        """Has the system read what follows while this part is worked on."""
        begin, end = max(start, self._announced), min(start + _AHEAD_BYTES, self._size)
        if begin < end and hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # advice that a file system doesn't take
                os.posix_fadvise(self._descriptor, begin, end - begin, os.POSIX_FADV_WILLNEED)
            self._announced = end

    def _read(self, start: int, end: int) -> bytes:
        data = os.pread(self._descriptor, end - start, start)
        if len(data) == end - start:
            return data
        pieces, at = [data], start + len(data)
        while at < end:
            if not (piece := os.pread(self._descriptor, end - at, at)):
                raise FileShrank(f"it ends at byte {at:,}, and had {self._size:,} when it was opened")
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces)


View = memoryview | RemoteFile | LocalFile
"""The source of a shard, read by slices: in memory, or in parts from a disk or a store."""
