"""The rows of a scores file: one for every input sample, kept or not, with the fields of its json."""

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
MAX_JSON_BYTES = 1 << 20
MAX_COLUMNS = 64
CLASH_PREFIX = "json_"
_TURN_EVERY = 1024
_decode = json.JSONDecoder().decode


def read_columns(file: IO[bytes], columns: list[str]) -> pa.Table:
    """These columns of a Parquet file, read in this thread alone.

    pq.read_table has threads that may let go of a Python file after it returned, which aborts a process that
    ends meanwhile (apache/arrow#34314, #50482).
    """
    with pq.ParquetFile(file, pre_buffer=False) as rows:
        return rows.read(columns, use_threads=False).select(columns)


def score_columns(head_names: Sequence[str]) -> list[str]:
    """The column of each head: `aesthetic_score` for the first, which decides what is kept. `punsafe`
    and `pwatermark` have LAION's own names as columns.

    Raises ValueError for no head, for one of those two as the first, and for two heads with one column.
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
    """The rows of one shard, held in memory as columns until its commit (about 0.5 KB a row)."""

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
        """The number of samples by status, in the order of `Status`, without statuses that don't occur."""
        counts = {status.value: self._statuses.count(status.value) for status in Status}
        return {status: count for status, count in counts.items() if count}

    def warnings(self) -> tuple[str, ...]:
        """Warnings about json files and fields that the scores leave out."""
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
        kept_R = np.concatenate(self._kept) if self._kept else np.zeros(0, np.bool_)
        none_RH = np.zeros((0, len(self._score_names)), np.float32)
        columns = score_table(
            self._score_names,
            np.concatenate(self._scores) if self._scores else none_RH,
            kept_R,
            key=_strings(self._keys),
            status=pa.array(self._statuses, pa.string()),
            error_message=_strings(self._messages),
            width=pa.array(self._widths, pa.int32()),
            height=pa.array(self._heights, pa.int32()),
            format=pa.array(self._formats, pa.string()),
            source_shard=_strings(self._sources),
            source_offset=pa.array(self._offsets, pa.int64()),
            output_shard=pa.array([self._output_shard if one else None for one in kept_R], pa.string()),
        )
        return pa.table({**columns, **self._sidecars.arrays()})


def score_table(
    score_names: Sequence[str],
    scores_RH: npt.NDArray[np.float32],
    kept_R: npt.NDArray[np.bool_],
    **facts: pa.Array,
) -> dict[str, pa.Array]:
    """The columns of a scores file in order: `facts`, and those made of scores and marks."""
    raw_R = scores_RH[:, 0]
    columns = {
        **facts,
        "aesthetic_score": pa.array(raw_R, pa.float32(), from_pandas=True),
        "aesthetic_score_01": pa.array(np.clip(raw_R / np.float32(10), 0, 1), pa.float32(), from_pandas=True),
        "kept": pa.array(kept_R, pa.bool_()),
    }
    others = {
        name: pa.array(scores_RH[:, head], pa.float32(), from_pandas=True)
        for head, name in enumerate(score_names[1:], start=1)
    }
    return {name: columns[name] for name in _COLUMNS} | others


def import_pandas() -> None:
    """Makes pyarrow import pandas, if installed, now and not during the first commit."""
    pa.array([])


def _side(pixels: int) -> int | None:
    """Null where unknown or too large for the column: a damaged PNG header may claim up to 2**32 - 1."""
    return pixels if 0 < pixels <= MOST_PIXELS else None


def _strings(texts: Sequence[str | None]) -> pa.Array:
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:  # a file name that is not UTF-8
        clean = (None if text is None else text.encode("utf-8", "backslashreplace") for text in texts)
        return pa.array(clean, pa.binary()).cast(pa.string())


class SidecarColumns:
    """Columns from json objects, such as img2dataset's `url` and `caption`: one for each top-level key.

    Keys are taken in the order of their first appearance, up to `MAX_COLUMNS`; one with the name of a
    reserved column gets the prefix `json_`. A column is bool, int64 or double if all its values are, else
    string, with other values written as json. Columns without a value are left out. A json that is malformed,
    no object or larger than `MAX_JSON_BYTES` counts as absent; `num_ignored` counts those.
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
        """Turns the recent rows into columns. Many at once take a third of the time of one by one."""
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
        """The columns, each with a value or null for every row."""
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
    """Whether doubles hold all integers exactly; they don't hold an id of 19 digits."""
    return all(int(float(value)) == value for value in values if type(value) is int)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return _clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
