"""Columns from the samples' json files: img2dataset's `url, caption, …` and whatever else is there."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from dali_aesthetic.types import Buffer

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
