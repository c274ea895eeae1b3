"""A local file as a sequence of bytes, read in parts as the reader comes to them."""

from __future__ import annotations

import os
from contextlib import suppress

_AHEAD_BYTES = 16 << 20


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
