"""Rows copied from a Parquet input: kept ones unchanged, those that could not be scored with the reason."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.stores.access import open_file
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.types import ImageHeader, Sample, Status
from dali_aesthetic.write.commit import Part
from dali_aesthetic.write.writers import ParquetWriter

_READ_BYTES = 8 << 20
_ROWS, _ENCODED_ROWS, _ROW_BYTES, _GROUP_BYTES = 16, 256, 8 << 20, 32 << 20
"""Rows read at a time (at most, and of Arrow dictionaries), their bytes, and the bytes of a row group."""
_STATED_BYTES = 4096
"""Parquet's writer leaves out minima and maxima of more bytes."""
QUARANTINE_COLUMNS = ("quarantine_status", "quarantine_reason")


class KeptRows(Part):
    """Collects the numbers of kept rows, and copies them from the input when finished.

    The schema with its metadata (Hugging Face's features) and the compression are the input's. Its row groups
    are divided where they are large; one without a kept row is left out.
    """

    def __init__(self, final: Path, source: str) -> None:
        super().__init__(final)
        self.source = source
        self._rows: list[int] = []
        self._writer: ParquetWriter | None = None

    def add(self, samples: Sequence[Sample]) -> None:
        """Adds samples to keep, in input order."""
        self._rows += [sample.offset for sample in samples]

    def finish(self) -> None:
        """See `Part`. Raises OSError where the file can't be written or the input became shorter."""
        rows = np.array(self._rows, np.int64)
        # Arrow reads a path with half the memory.
        with open_file(self.source) if is_url(self.source) else pa.OSFile(self.source) as file:
            source = pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BYTES)
            if len(rows) and rows[-1] >= source.metadata.num_rows:
                raise OSError(
                    f"{self.source} became shorter while it was read: run again when it is finished"
                )
            self._writer = ParquetWriter(self.final, self._schema(source), **_options(source))
            start = done = 0
            for group in range(source.num_row_groups):
                end = start + source.metadata.row_group(group).num_rows
                here = rows[(rows >= start) & (rows < end)] - start
                if len(here):
                    for table in taken(_batches(source, group), here, source.schema_arrow):
                        self._writer.add(self._written(table, done))
                        done += len(table)
                start = end
        self._writer.finish()
        self.num_bytes = self._writer.num_bytes

    def _schema(self, source: pq.ParquetFile) -> pa.Schema:
        return source.schema_arrow

    def _written(self, table: pa.Table, start: int) -> pa.Table:
        """The rows to write for the chosen rows of a row group, the first of which has the index `start`."""
        return table

    def abandon(self) -> None:
        """See `Part`."""
        if self._writer is not None:
            self._writer.abandon()
        super().abandon()


class BadRows(KeptRows):
    """Copies rows that could not be scored, whole, with two more columns, `QUARANTINE_COLUMNS`.

    They have the values of `status` and `error_message` in the scores. The schema's metadata is dropped: it
    describes the columns of the input only.
    """

    def __init__(self, final: Path, source: str) -> None:
        super().__init__(final, source)
        self._reasons: list[tuple[str, str]] = []

    @property
    def num_rows(self) -> int:
        """The number of rows so far."""
        return len(self._rows)

    def add_bad(self, samples: Sequence[Sample], headers: Sequence[ImageHeader]) -> None:
        """Adds samples and the reason for each, in input order."""
        self.add(samples)
        for sample, header in zip(samples, headers, strict=True):
            worst = header if sample.status is Status.OK else sample
            self._reasons.append((worst.status.value, worst.message))

    def _schema(self, source: pq.ParquetFile) -> pa.Schema:
        return self._written(source.schema_arrow.empty_table(), 0).schema

    def _written(self, table: pa.Table, start: int) -> pa.Table:
        reasons = self._reasons[start : start + len(table)]
        for index, name in enumerate(QUARANTINE_COLUMNS):
            while name in table.column_names:
                name += "_"
            table = table.append_column(name, pa.array([one[index] for one in reasons], pa.string()))
        return table.replace_schema_metadata(None)


def _batches(source: pq.ParquetFile, group: int) -> Iterator[pa.RecordBatch]:
    """So few rows at a time that they would fit if each was as large as its whole row group."""
    size = source.metadata.row_group(group).total_byte_size
    rows = max(1, min(_ROWS, _ROW_BYTES // max(1, size)))
    if _is_encoded(source.schema_arrow):
        rows = _ENCODED_ROWS  # each batch has a copy of the dictionary
    return source.iter_batches(rows, row_groups=[group], use_threads=False)  # type: ignore[no-any-return]


def _is_encoded(schema: pa.Schema) -> bool:
    """Whether a column is an Arrow dictionary of images or other bytes."""
    kinds = (field.type.value_type for field in schema if pa.types.is_dictionary(field.type))
    return any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in kinds)


def taken(
    batches: Iterable[pa.RecordBatch], rows: npt.NDArray[np.int64], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Tables of the given rows, numbered over all batches, in ascending order; one ends at `_GROUP_BYTES`.

    Batch by batch, because `Table.take` concatenates a column, which fails above 2 GiB of images.
    """
    pieces, start, size, most = list[pa.RecordBatch](), 0, 0, _GROUP_BYTES
    if _is_encoded(schema):
        most = sys.maxsize  # every table would have the whole dictionary
    for batch in batches:
        first, last = np.searchsorted(rows, [start, start + len(batch)])
        if first < last:
            found = _taken(batch, rows[first:last] - start)
            pieces += found
            size += sum(piece.nbytes for piece in found)
        start += len(batch)
        if size >= most:
            yield pa.Table.from_batches(pieces, schema)
            pieces, size = [], 0
    if pieces:
        yield pa.Table.from_batches(pieces, schema)


def _taken(batch: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> list[pa.RecordBatch]:
    if len(rows) == len(batch):
        return [batch]
    try:
        return [batch.take(pa.array(rows))]
    except pa.ArrowNotImplementedError:  # string_view and binary_view can be sliced only
        return [batch.slice(row, 1) for row in rows.tolist()]


def _options(source: pq.ParquetFile) -> dict[str, Any]:
    """The input's compression, and statistics of its columns of small values.

    For those of a large value the writer copies it four times, and then leaves them out.
    """
    if not source.metadata.num_row_groups:
        return {"compression": "snappy"}
    first = source.metadata.row_group(0)
    columns = [first.column(index) for index in range(first.num_columns)]
    codec = next((column.compression.lower() for column in columns), "snappy")
    small = [c.path_in_schema for c in columns if c.total_uncompressed_size <= _STATED_BYTES * c.num_values]
    return {"compression": "none" if codec == "uncompressed" else codec, "write_statistics": small}
