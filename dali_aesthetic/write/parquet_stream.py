"""A Parquet file written piece by piece, and there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.write.files import naming, publish, temporary_path

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
