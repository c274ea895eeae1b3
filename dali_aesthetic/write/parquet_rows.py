"""Kept rows of a Parquet input: the same schema, the same values, its row groups filtered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.stores.access import open_file
from dali_aesthetic.types import Sample
from dali_aesthetic.write.parquet_stream import ParquetStream


class KeptRows:
    """Notes which rows are kept and copies them from the input at the end, a row group at a time.

    The schema with its metadata (Hugging Face's features) and the compression are the input's. A row group
    without a kept row is left out.
    """

    def __init__(self, final: Path, source: str) -> None:
        self.final, self.source = final, source
        self.num_bytes = 0
        self._rows: list[int] = []
        self._stream: ParquetStream | None = None

    def add(self, samples: Sequence[Sample]) -> None:
        """Notes samples to keep, in input order."""
        self._rows += [sample.offset for sample in samples]

    def finish(self) -> None:
        """Writes the file under a temporary name, synced to disk. Raises OSError where it can't be written or
        the input became shorter."""
        rows = np.array(self._rows, np.int64)
        with open_file(self.source) as file:
            source = pq.ParquetFile(file)
            if len(rows) and rows[-1] >= source.metadata.num_rows:
                raise OSError(
                    f"{self.source} became shorter while it was read: run again when it is finished"
                )
            self._stream = ParquetStream(self.final, source.schema_arrow, **_compression(source))
            start = 0
            for group in range(source.num_row_groups):
                end = start + source.metadata.row_group(group).num_rows
                here = rows[(rows >= start) & (rows < end)] - start
                if len(here):
                    self._stream.add(source.read_row_group(group).take(pa.array(here)))
                start = end
        self.num_bytes = self._stream.finish()

    @property
    def finals(self) -> tuple[Path, ...]:
        """The names its files get."""
        return (self.final,)

    def publish(self) -> None:
        """Gives the finished file its final name."""
        if self._stream is not None:
            self._stream.publish()

    def abandon(self) -> None:
        """Removes what was written; also fine after `publish`."""
        if self._stream is not None:
            self._stream.abandon()


def _compression(source: pq.ParquetFile) -> dict[str, str]:
    metadata = source.metadata
    if not metadata.num_row_groups or not metadata.num_columns:
        return {"compression": "snappy"}
    codec = str(metadata.row_group(0).column(0).compression).lower()
    return {"compression": "none" if codec == "uncompressed" else codec}
