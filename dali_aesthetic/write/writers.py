"""Kept samples, streamed into a tar byte for byte."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.layout import TAR_END
from dali_aesthetic.types import Buffer
from dali_aesthetic.write.files import naming, open_new, publish, temporary_path, write_all

_START_EVERY = 16 << 20
_NOT_NEEDED = getattr(os, "POSIX_FADV_DONTNEED", 0)


class ShardTarWriter:
    """Writes tar entries under a temporary name; `publish` makes it `final`.

    Nothing but the entries and the end marker, so that the same entries always are the same bytes.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self.temporary = temporary_path(final)
        self.num_bytes = 0
        self._started = 0
        with naming(self.temporary):
            self._descriptor = open_new(self.temporary)

    def add(self, entries: Sequence[Buffer]) -> None:
        """Appends whole entries (headers, data, padding). Raises OSError naming the file."""
        with naming(self.temporary):
            self.num_bytes += write_all(self._descriptor, entries)
        if self.num_bytes - self._started >= _START_EVERY:
            self._start_writing()

    def _start_writing(self) -> None:
        """Has the kernel begin to write to disk now, so that the sync at the end is short.

        Linux does so for pages it is told will not be needed; it keeps those not yet written.
        """
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, self._started, self.num_bytes - self._started, _NOT_NEEDED)
        self._started = self.num_bytes

    def finish(self) -> None:
        """Ends the tar and syncs it to disk; it still has its temporary name."""
        with naming(self.temporary):
            write_all(self._descriptor, [TAR_END])
            os.fsync(self._descriptor)
        self._close()

    @property
    def finals(self) -> tuple[Path, ...]:
        """The names its files get."""
        return (self.final,)

    def publish(self) -> None:
        """Gives the finished tar its final name."""
        publish(self.temporary, self.final)

    def abandon(self) -> None:
        """Removes what was written; also fine after `publish`."""
        self._close()
        self.temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


# FOLDED dali_aesthetic/write/parquet_stream.py: A Parquet file written piece by piece, and there whole or not at all.


COMPRESSION: dict[str, Any] = {"compression": "zstd", "compression_level": 3}


class ParquetStream:
    """Writes tables of one schema under a temporary name; `publish` makes the file `final`.

    Each table is a row group. The same tables give the same bytes with the same pyarrow. `options` are
    pyarrow's own for `ParquetWriter`.
    """

    def __init__(self, final: Path, schema: pa.Schema, **options: Any) -> None:
        self.final = final
        self.schema = schema
        self.temporary = temporary_path(final)
        with naming(self.temporary):
            self._file = self.temporary.open("wb")
            self._writer = pq.ParquetWriter(self._file, schema, **(options or COMPRESSION))

    def add(self, table: pa.Table) -> None:
        """Appends a row group. Raises OSError naming the file."""
        with naming(self.temporary):
            self._writer.write_table(table, row_group_size=max(1, len(table)))

    def finish(self) -> int:
        """Ends the file and syncs it to disk, still under its temporary name; returns its bytes."""
        with naming(self.temporary):
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            size = self._file.tell()
            self._file.close()
        return size

    def publish(self) -> None:
        """Gives the finished file its final name."""
        publish(self.temporary, self.final)

    def abandon(self) -> None:
        """Removes what was written; also fine after `publish`."""
        if not self._file.closed:
            self._file.close()
        self.temporary.unlink(missing_ok=True)
