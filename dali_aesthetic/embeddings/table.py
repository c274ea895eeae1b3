"""Scores files of stored embeddings: the columns of a run, and those of the embeddings' metadata.

Shape legend: R rows, H heads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dali_aesthetic.layout import scores_file, stats_file
from dali_aesthetic.types import ShardReport, Status
from dali_aesthetic.write.commit import commit
from dali_aesthetic.write.files import output_path
from dali_aesthetic.write.rows import MOST_PIXELS, score_columns, score_table
from dali_aesthetic.write.writers import ParquetWriter

CLASH_PREFIX = "metadata_"
_KEYS = ("key", "image_path")
"""Columns of the metadata that may name a row, the preferred one first; otherwise its number is its key."""


class EmbeddingScores:
    """Writes the scores and the stats of one file of embeddings, as a run does for a shard.

    Every column of the metadata is copied. `key`, `width` and `height` fill the columns of that name; another
    column with the name of one of ours gets the prefix `metadata_`.
    """

    def __init__(
        self, output: Path, name: str, source: str, head_names: Sequence[str], fingerprint: str = ""
    ) -> None:
        """`fingerprint` identifies the content of `source`."""
        self.name, self.source, self._fingerprint = name, source, fingerprint
        self._score_names = score_columns(head_names)
        self._scores = output_path(output, scores_file(name))
        self._stats = output_path(output, stats_file(name))
        self._writer: ParquetWriter | None = None
        self._statuses: Counter[str] = Counter()
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
        table = self._table(scores_RH, kept_R, statuses, messages, metadata)
        self._writer = self._writer or ParquetWriter(self._scores, table.schema)
        self._writer.add(table.cast(self._writer.schema))
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
            del given["key"]  # `image_path` stays: it is a column of clip-retrieval's, whatever it holds
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
            source_shard=pa.repeat(pa.scalar(self.source), rows),
            source_offset=offsets,
            output_shard=pa.nulls(rows, pa.string()),
        )
        for name, column in given.items():
            while name in columns:
                name = CLASH_PREFIX + name
            columns[name] = column
        return pa.table(columns)

    def commit(self) -> ShardReport:
        """Makes the file of embeddings done; see `write/commit.py`."""
        if self._writer is None:
            self.add(np.empty((0, len(self._score_names)), np.float32), np.empty(0, np.bool_), {}, None)
            assert self._writer is not None
        report = ShardReport(
            name=self.name,
            source=self.source,
            num_samples=self.num_rows,
            num_kept=self.num_kept,
            fingerprint=self._fingerprint,
            statuses={
                status.value: self._statuses[status.value] for status in Status if self._statuses[status]
            },
        )
        return commit([self._writer], self._stats, lambda: report)

    def abandon(self) -> None:
        """Removes the temporary file; also fine after `commit`."""
        if self._writer is not None:
            self._writer.abandon()


def _is_text(column: pa.ChunkedArray | None) -> bool:
    return column is not None and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _taken(given: dict[str, pa.ChunkedArray], name: str, rows: int) -> pa.Array | pa.ChunkedArray:
    """An integer column, removed from `given`, as int32; null where there is none or a value doesn't fit."""
    if name in given and pa.types.is_integer(given[name].type):
        sides = given.pop(name)
        fits = pc.and_(pc.greater_equal(sides, 0), pc.less_equal(sides, MOST_PIXELS))
        return pc.if_else(fits, sides, pa.scalar(None, sides.type)).cast(pa.int32())
    return pa.nulls(rows, pa.int32())
