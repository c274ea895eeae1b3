"""One row for every input sample, kept or not, good or bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.types import ImageHeader, Sample, Status
from dali_aesthetic.write.sidecar import MAX_COLUMNS, SidecarColumns

_ROW_GROUP = 65_536
_NO_NUMBER = "the model gave no number"
MOST_PIXELS = 2**31 - 1
"""The longest side that the int32 columns of width and height hold."""
_COLUMNS = (
    *("key", "status", "error_message", "width", "height", "format"),
    *("aesthetic_score", "aesthetic_score_01", "kept", "source_shard", "source_offset", "output_shard"),
)
_NOT_AESTHETIC = ("punsafe", "pwatermark")


def read_columns(file: IO[bytes], columns: list[str]) -> pa.Table:
    """These columns of a Parquet file, read in this thread alone.

    pq.read_table has threads that may let go of a Python file after it returned, which aborts a process that
    ends meanwhile (apache/arrow#34314, #50482).
    """
    with pq.ParquetFile(file, pre_buffer=False) as rows:
        return rows.read(columns, use_threads=False).select(columns)


def score_columns(head_names: Sequence[str]) -> list[str]:
    """Column of each head: the first decides what is kept and has the plain name; `punsafe` and `pwatermark`
    are columns by LAION's names.

    Raises ValueError where there is no head, one of those two is first, or two would share a column.
    """
    if not head_names:
        raise ValueError("head_names is empty; at least one head is needed to decide what is kept")
    if head_names[0] in _NOT_AESTHETIC:
        raise ValueError(f"the head {head_names[0]!r} is first, so what is bad would be kept; put it second")
    columns = ["aesthetic_score"]
    columns += [name if name in _NOT_AESTHETIC else f"aesthetic_score_{name}" for name in head_names[1:]]
    if len(set(columns) - set(_COLUMNS[7:])) < len(columns):
        raise ValueError(f"two heads would share a column in {list(head_names)}; rename one of them")
    return columns


class ScoreRows:
    """The rows of one shard, held as columns until it is committed (about 0.5 KB a row)."""

    def __init__(self, head_names: Sequence[str], output_shard: str) -> None:
        self._score_names = score_columns(head_names)
        self._output_shard = output_shard
        self._keys: list[str] = []
        self._sources: list[str] = []
        self._offsets: list[int] = []
        self._statuses: list[str] = []
        self._messages: list[str | None] = []
        self._widths: list[int | None] = []
        self._heights: list[int | None] = []
        self._formats: list[str | None] = []
        self._kept: list[npt.NDArray[np.bool_]] = []
        self._scores: list[npt.NDArray[np.float32]] = []
        self._sidecars = SidecarColumns(frozenset((*_COLUMNS, *self._score_names)))

    def add(
        self,
        samples: Sequence[Sample],
        headers: Sequence[ImageHeader],
        scores_RH: npt.NDArray[np.float32],
        kept_R: npt.NDArray[np.bool_],
    ) -> None:
        """Appends rows in input order; a score that is NaN is written as null."""
        worst = [
            header if sample.status is Status.OK else sample
            for sample, header in zip(samples, headers, strict=True)
        ]
        self._keys += [sample.key for sample in samples]
        self._sources += [sample.source for sample in samples]
        self._offsets += [sample.offset for sample in samples]
        self._statuses += [one.status.value for one in worst]
        self._messages += [
            one.message or (_NO_NUMBER if nan and one.status is Status.OK else None)
            for one, nan in zip(worst, np.isnan(scores_RH[:, 0]), strict=True)
        ]
        self._widths += [_side(header.width) for header in headers]
        self._heights += [_side(header.height) for header in headers]
        self._formats += [header.format or None for header in headers]
        for sample in samples:
            self._sidecars.add(sample.sidecar)
        self._kept.append(kept_R)
        self._scores.append(np.array(scores_RH, dtype=np.float32))

    def statuses(self) -> dict[str, int]:
        """How many samples ended in each status that occurred, in the order of `Status`."""
        counts = {status.value: self._statuses.count(status.value) for status in Status}
        return {status: count for status, count in counts.items() if count}

    def warnings(self) -> tuple[str, ...]:
        """Oddities of the json sidecars."""
        found = []
        if self._sidecars.num_ignored:
            found.append(f"unreadable json files left out of the scores: {self._sidecars.num_ignored}")
        if self._sidecars.num_keys_left_out:
            count = self._sidecars.num_keys_left_out
            found.append(f"json keys beyond the first {MAX_COLUMNS} left out of the scores: {count}")
        return tuple(found)

    def to_parquet(self) -> pa.Buffer:
        """The whole file; the same rows give the same bytes with the same pyarrow."""
        sink = pa.BufferOutputStream()
        pq.write_table(
            self._table(),
            sink,
            compression="zstd",
            compression_level=3,
            row_group_size=_ROW_GROUP,
            write_statistics=True,
        )
        return sink.getvalue()

    def _table(self) -> pa.Table:
        kept = np.concatenate(self._kept) if self._kept else np.zeros(0, np.bool_)
        none_RH = np.zeros((0, len(self._score_names)), np.float32)
        scores_RH = np.concatenate(self._scores) if self._scores else none_RH
        raw = pa.array(scores_RH[:, 0], pa.float32(), from_pandas=True)
        normal = pa.array(np.clip(scores_RH[:, 0] / np.float32(10), 0, 1), pa.float32(), from_pandas=True)
        columns = {
            "key": _strings(self._keys),
            "status": pa.array(self._statuses, pa.string()),
            "error_message": _strings(self._messages),
            "width": pa.array(self._widths, pa.int32()),
            "height": pa.array(self._heights, pa.int32()),
            "format": pa.array(self._formats, pa.string()),
            "aesthetic_score": raw,
            "aesthetic_score_01": normal,
            "kept": pa.array(kept, pa.bool_()),
            "source_shard": _strings(self._sources),
            "source_offset": pa.array(self._offsets, pa.int64()),
            "output_shard": pa.array([self._output_shard if one else None for one in kept], pa.string()),
        }
        for index, name in enumerate(self._score_names[1:], start=1):
            columns[name] = pa.array(scores_RH[:, index], pa.float32(), from_pandas=True)
        return pa.table({**columns, **self._sidecars.arrays()})


def import_pandas() -> None:
    """Has pyarrow do what it does for its first array: import pandas, where it is installed.

    Done before, it doesn't keep the first commit waiting.
    """
    pa.array([])


def _side(pixels: int) -> int | None:
    """Null where unknown, and beyond the column: a damaged PNG header may claim up to 2**32 - 1."""
    return pixels if 0 < pixels <= MOST_PIXELS else None


def _strings(texts: Sequence[str | None]) -> pa.Array:
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:  # a file name that is not UTF-8
        clean = (None if text is None else text.encode("utf-8", "backslashreplace") for text in texts)
        return pa.array(clean, pa.binary()).cast(pa.string())
