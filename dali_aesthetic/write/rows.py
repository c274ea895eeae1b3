"""One row for every input sample, kept or not, good or bad."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.types import Buffer, ImageHeader, Sample, Status
from dali_aesthetic.write.writers import to_parquet

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

    def to_parquet(self) -> memoryview:
        """The whole file; the same rows give the same bytes with the same pyarrow."""
        return to_parquet(self._table())

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


# FOLDED dali_aesthetic/write/sidecar.py: Columns from the samples' json files: img2dataset's `url, caption, …` and whatever else is there.


MAX_JSON_BYTES = 1 << 20
MAX_COLUMNS = 64
CLASH_PREFIX = "json_"
_TURN_EVERY = 1024
_decode = json.JSONDecoder().decode


class SidecarColumns:
    """Gathers the top-level values of json objects by name, one value a row.

    Every key passes through, in the order of first appearance, up to `MAX_COLUMNS`; one that has the name of
    a column of ours gets `json_` before it. A column is bool, int64 or double where all its values are, else
    string (what is no string is written as json). Columns without any value are left out. A json that is
    malformed, no object or above `MAX_JSON_BYTES` counts as absent, and `num_ignored` counts it.
    """

    def __init__(self, reserved: frozenset[str]) -> None:
        self._reserved = reserved
        self._recent: list[dict[str, Any] | None] = []
        self._columns: dict[str, list[Any]] = {}
        self._num_rows = 0
        self.num_ignored = 0
        self.num_keys_left_out = 0

    def add(self, sidecar: Buffer | None) -> None:
        """Appends one row; None where the sample has no json."""
        self._recent.append(None if sidecar is None else self._parse(sidecar))
        if len(self._recent) >= _TURN_EVERY:
            self._turn()

    def _parse(self, sidecar: Buffer) -> dict[str, Any] | None:
        try:
            # str() is a third faster than json's own guess at the encoding, and json is UTF-8.
            found = _decode(str(sidecar, "utf-8")) if len(sidecar) <= MAX_JSON_BYTES else None
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            return found
        self.num_ignored += 1
        return None

    def _turn(self) -> None:
        """Rows to columns, many at once: a third of the time of value by value."""
        rows, self._recent = self._recent, []
        names = dict.fromkeys(key for row in rows if row is not None for key in row)
        for name in names:
            values = [row.get(name) if row is not None else None for row in rows]
            if name not in self._columns:
                if all(value is None for value in values):
                    continue
                if len(self._columns) >= MAX_COLUMNS:
                    self.num_keys_left_out += 1
                    continue
            column = self._columns.setdefault(name, [])
            column.extend([None] * (self._num_rows - len(column)))
            column.extend(values)
        self._num_rows += len(rows)

    def arrays(self) -> dict[str, pa.Array]:
        """The columns, all as long as there were rows."""
        self._turn()
        arrays: dict[str, pa.Array] = {}
        for key, values in self._columns.items():
            name = _clean(key)
            while name in self._reserved or name in arrays:
                name = CLASH_PREFIX + name
            arrays[name] = _array(values + [None] * (self._num_rows - len(values)))
        return arrays


def _array(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    try:
        if kinds == {str}:
            return pa.array(values, pa.string())
        if kinds == {bool}:
            return pa.array(values, pa.bool_())
        if kinds == {int}:
            return pa.array(values, pa.int64())
        if kinds and kinds <= {int, float} and _are_doubles(values):
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
    except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
        pass  # a number beyond 64 bits or half a surrogate pair: as text
    return pa.array([_text(value) for value in values], pa.string())


def _are_doubles(values: list[Any]) -> bool:
    """Whether all whole numbers are ones as doubles, too: an id of 19 digits beside a NaN is not."""
    return all(int(float(value)) == value for value in values if type(value) is int)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return _clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
