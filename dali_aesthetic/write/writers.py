"""Files of a shard that are streamed: a tar of entries copied byte for byte, and a Parquet file of tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.layout import TAR_END
from dali_aesthetic.types import Buffer
from dali_aesthetic.write.commit import Part
from dali_aesthetic.write.files import naming, open_new, removing_on_error, write_all

COMPRESSION: dict[str, Any] = {"compression": "zstd", "compression_level": 3}
_ROW_GROUP = 65_536
_START_EVERY = 16 << 20
_NOT_NEEDED = getattr(os, "POSIX_FADV_DONTNEED", 0)


class TarWriter(Part):
    """A tar of entries as they are and the end marker, so that the same entries always are the same bytes.

    `num_bytes` counts the entries alone.
    """

    def __init__(self, final: Path) -> None:
        super().__init__(final)
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
        """Has the kernel write to disk in the background, so that the sync at the end is short.

        Linux starts to write pages of which it is told that they will not be needed.
        """
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, self._started, self.num_bytes - self._started, _NOT_NEEDED)
        self._started = self.num_bytes

    def finish(self) -> None:
        """See `Part`."""
        with naming(self.temporary):
            write_all(self._descriptor, [TAR_END])
            os.fsync(self._descriptor)
        self._close()

    def abandon(self) -> None:
        """See `Part`."""
        with suppress(OSError):
            self._close()
        super().abandon()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class ParquetWriter(Part):
    """A Parquet file of tables of one schema, a row group each.

    The same tables give the same bytes with the same pyarrow. `options` are pyarrow's own for its writer.
    """

    def __init__(self, final: Path, schema: pa.Schema, **options: Any) -> None:
        super().__init__(final)
        self.schema = schema
        with naming(self.temporary), removing_on_error(self.temporary):
            self._file = self.temporary.open("wb")
            self._writer = pq.ParquetWriter(self._file, schema, **(options or COMPRESSION))

    def add(self, table: pa.Table) -> None:
        """Appends a row group. Raises OSError naming the file."""
        with naming(self.temporary):
            self._writer.write_table(table, row_group_size=max(1, len(table)))

    def finish(self) -> None:
        """See `Part`."""
        with naming(self.temporary):
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self.num_bytes = self._file.tell()
            self._file.close()

    def abandon(self) -> None:
        """See `Part`."""
        with suppress(OSError):  # closing writes what is buffered, for which there may be no room
            self._file.close()
        super().abandon()


def to_parquet(table: pa.Table, rows_in_group: int = _ROW_GROUP) -> memoryview:
    """A whole Parquet file; the same table gives the same bytes with the same pyarrow."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=rows_in_group, **COMPRESSION)
    return memoryview(sink.getvalue())
