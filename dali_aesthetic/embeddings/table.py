"""Scores files of stored embeddings: the columns of a run, and those of the embeddings' metadata.

Shape legend: R rows, H heads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dali_aesthetic.layout import scores_file, stats_file
from dali_aesthetic.shards.parquet import converted
from dali_aesthetic.types import ShardReport, Status
from dali_aesthetic.write.commit import commit
from dali_aesthetic.write.files import output_path
from dali_aesthetic.write.json_fields import REST, FieldColumns
from dali_aesthetic.write.rows import (
    MOST_PIXELS,
    json_columns,
    score_columns,
    score_table,
)
from dali_aesthetic.write.writers import ParquetWriter

_PATH = "image_path"
_KEYS = ("key", _PATH)
"""Columns of the metadata that may name a row, the preferred one first; otherwise its number is its key."""


class EmbeddingScores:
    """Writes the scores and the stats of one file of embeddings, as a run does for a shard.

    The columns of the metadata are placed as the fields of a sample's json are, but `key`, `width` and
    `height` fill the columns of that name, and `image_path` has one of its own.
    """

    def __init__(
        self,
        output: Path,
        name: str,
        source: str,
        head_names: Sequence[str],
        columns: Sequence[str],
        fingerprint: str = "",
    ) -> None:
        """`columns` are those of `json_columns`; `fingerprint` identifies the content of `source`."""
        self.name, self.source, self._fingerprint = name, source, fingerprint
        self._score_names = score_columns(head_names)
        self._fields = json_columns([*columns, _PATH], self._score_names)
        self._stats = output_path(output, stats_file(name))
        self._writer = ParquetWriter(output_path(output, scores_file(name)))
        self._statuses: Counter[str] = Counter()
        self._warnings: dict[str, None] = {}
        self.num_rows = self.num_kept = 0

    def add(
        self,
        scores_RH: npt.NDArray[np.float32],
        kept_R: npt.NDArray[np.bool_],
        problems: Mapping[int, tuple[Status, str]],
        metadata: pa.Table | None,
    ) -> None:
        """Appends rows in order as one row group; `problems` is by row of this call."""
        statuses = [Status.OK.value] * len(scores_RH)
        messages: list[str | None] = [None] * len(scores_RH)
        for row, (status, message) in problems.items():
            statuses[row], messages[row] = status.value, message
        self._writer.add(self._table(scores_RH, kept_R, statuses, messages, metadata))
        self._statuses.update(statuses)
        self.num_rows += len(scores_RH)
        self.num_kept += int(np.count_nonzero(kept_R))

    def _table(
        self,
        scores_RH: npt.NDArray[np.float32],
        kept_R: npt.NDArray[np.bool_],
        statuses: list[str],
        messages: list[str | None],
        metadata: pa.Table | None,
    ) -> pa.Table:
        rows = len(scores_RH)
        given = {} if metadata is None else dict(zip(metadata.column_names, metadata.columns, strict=True))
        offsets = pa.array(np.arange(self.num_rows, self.num_rows + rows), pa.int64())
        named = [given[name].cast(pa.string()) for name in _KEYS if _is_text(given.get(name))]
        if _is_text(given.get("key")):
            del given["key"]
        columns = score_table(
            self._score_names,
            scores_RH,
            kept_R,
            key=pc.coalesce(*named, offsets.cast(pa.string())),
            status=pa.array(statuses, pa.string()),
            error_message=pa.array(messages, pa.string()),
            width=_taken(given, "width", rows),
            height=_taken(given, "height", rows),
            format=pa.nulls(rows, pa.string()),
            num_bytes=pa.nulls(rows, pa.int64()),
            source_shard=pa.repeat(pa.scalar(self.source), rows),
            source_offset=offsets,
            output_shard=pa.nulls(rows, pa.string()),
        )
        return pa.table({**columns, **self._facts(given, rows)})

    def _facts(self, given: dict[str, pa.ChunkedArray], rows: int) -> dict[str, pa.Array | pa.ChunkedArray]:
        """The columns for the metadata `given`. Only columns of another type, and those without a place, are
        looked at value by value."""
        placed: dict[str, pa.Array | pa.ChunkedArray] = {}
        spellings = {name.casefold(): name for name in given}
        for name, column, kind in self._fields:
            source = column if column in given else spellings.get(name.casefold(), "")
            if column != REST and source in given and (fit := _cast(given[source], kind)) is not None:
                placed[column] = fit
                del given[source]
        if given.keys() == {REST} and _is_text(given[REST]) and self._fields[-1].column == REST:
            placed[REST] = given.pop(REST).cast(pa.string())
        others = FieldColumns(self._fields)
        left = pa.table(given).to_batches() if given else []
        for row in (row for batch in left for row in converted(batch, self._warnings)):
            others.add(json.dumps(row, default=str).encode())
        while others.num_rows < rows:
            others.add(None)
        return others.take() | placed

    def commit(self) -> ShardReport:
        """Makes the file of embeddings done; see `write/commit.py`."""
        if not self._writer.is_open:
            self.add(np.empty((0, len(self._score_names)), np.float32), np.empty(0, np.bool_), {}, None)
        report = ShardReport(
            name=self.name,
            source=self.source,
            num_samples=self.num_rows,
            num_kept=self.num_kept,
            fingerprint=self._fingerprint,
            warnings=tuple(self._warnings),
            statuses={
                status.value: self._statuses[status.value] for status in Status if self._statuses[status]
            },
        )
        return commit([self._writer], self._stats, lambda: report)

    def abandon(self) -> None:
        """Removes the temporary file; also fine after `commit`."""
        self._writer.abandon()


def _is_text(column: pa.ChunkedArray | None) -> bool:
    return column is not None and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """The column as `kind`, with null for NaN; None where a value would change or is of another kind."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    try:
        return column.cast(kind) if _family(column.type) in (_family(kind), "null") else None
    except pa.ArrowInvalid:
        return None


def _family(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return "string" if pa.types.is_large_string(kind) else str(kind)


def _taken(given: dict[str, pa.ChunkedArray], name: str, rows: int) -> pa.Array | pa.ChunkedArray:
    """An integer column, removed from `given`, as int32; null where there is none or a value doesn't fit."""
    if name in given and pa.types.is_integer(given[name].type):
        sides = given.pop(name)
        fits = pc.and_(pc.greater_equal(sides, 0), pc.less_equal(sides, MOST_PIXELS))
        return pc.if_else(fits, sides, pa.scalar(None, sides.type)).cast(pa.int32())
    return pa.nulls(rows, pa.int32())
