"""Json objects as columns of text, numbers and switches, and what is left of them as json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from dali_aesthetic.types import Buffer

REST, NO_REST = "json", "-json"
"""The column of what other columns don't hold, and what `Config.columns` calls to be without it."""
MAX_JSON_BYTES = 1 << 20
_PIECE_ROWS, _PIECE_BYTES = 1024, 1 << 20
_decode = json.JSONDecoder(parse_constant=lambda name: None if name == "NaN" else name).decode
"""NaN stands for a missing number in what pandas writes; like infinity it is no json."""
_encode = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")
).encode
_PYTHON: dict[pa.DataType, set[type]] = {
    pa.string(): {str},
    pa.int64(): {int},
    pa.float64(): {int, float},
    pa.bool_(): {bool},
}
_NOTHING: tuple[dict[str, Any], str] = ({}, "")
_UNFIT = (pa.ArrowException, OverflowError, ValueError, RecursionError)


class Field(NamedTuple):
    """A field of the samples' json, its column in the scores, and the column's type."""

    name: str
    column: str
    kind: pa.DataType


class FieldColumns:
    """The columns `fields` from json objects; that called `json` has all other fields, as compact json.

    A field is found whatever its case; the exact spelling goes first. A string column holds other values as
    json, an int column whole numbers, a float column numbers, a bool column true and false. A value that
    doesn't fit is null and stays in `json`. A json that is malformed, no object, nested too deep for Python
    or larger than `MAX_JSON_BYTES` counts as absent; `num_ignored` counts those. Little is held parsed:
    `num_rows` rows with `num_bytes` of json are held as columns.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = fields
        self.names = [field.column for field in fields]
        self._recent: list[tuple[dict[str, Any], str]] = []
        self._recent_bytes = 0
        self._pieces: list[list[pa.Array]] = []
        self.num_rows = self.num_bytes = self.num_ignored = 0

    def add(self, sidecar: Buffer | None) -> None:
        """Appends one row; None where the sample has no json."""
        self.num_rows += 1
        if sidecar is None:
            self._recent.append(_NOTHING)
        else:
            self._recent.append(self._parse(sidecar))
            self.num_bytes += len(sidecar)
            self._recent_bytes += len(sidecar)
        if len(self._recent) >= _PIECE_ROWS or self._recent_bytes >= _PIECE_BYTES:
            self._turn()

    def _parse(self, sidecar: Buffer) -> tuple[dict[str, Any], str]:
        try:
            if len(sidecar) <= MAX_JSON_BYTES:
                # str() is a third faster than json's own guess at the encoding, and json is UTF-8.
                text = str(sidecar, "utf-8")
                if isinstance(found := _decode(text), dict):
                    return found, text
        except (ValueError, RecursionError):
            pass
        self.num_ignored += 1
        return _NOTHING

    def _turn(self) -> None:
        """Turns the recent rows into columns. Many at once take a third of the time of one by one."""
        recent, self._recent, self._recent_bytes = self._recent, [], 0
        rows = [row for row, _ in recent]
        names: set[str] = set()
        names.update(*rows)
        spellings: dict[str, list[str]] = {}
        for name in sorted(names):
            spellings.setdefault(name.casefold(), []).append(name)
        piece, taken = [], set[str]()
        for name, column, kind in self._fields:
            if column == REST:  # the last one
                piece.append(pa.array([_rest(row, taken, text) for row, text in recent], pa.string()))
                continue
            found = sorted(spellings.get(name.casefold(), ()), key=lambda one: one != name)
            piece.append(_column(rows, found, kind, taken))
        self._pieces.append(piece)

    def latest(self, num_rows: int, columns: Sequence[str]) -> dict[str, pa.Array]:
        """Those of `columns` that are here, of the last rows."""
        wanted = [place for place, name in enumerate(self.names) if name in columns]
        if not wanted:
            return {}
        self._turn()
        pieces, missing = list[list[pa.Array]](), num_rows
        for piece in reversed(self._pieces):
            if missing <= 0:
                break
            pieces.insert(0, piece)
            missing -= len(piece[0])
        joined = {self.names[at]: pa.concat_arrays([piece[at] for piece in pieces]) for at in wanted}
        return {name: column[len(column) - num_rows :] for name, column in joined.items()}

    def take(self) -> dict[str, pa.Array]:
        """The columns of the rows since the last call."""
        self._turn()
        pieces, self._pieces, self.num_rows, self.num_bytes = self._pieces, [], 0, 0
        arrays = zip(self.names, *pieces, strict=True)
        return {name: pa.concat_arrays(parts) for name, *parts in arrays}


def _column(
    rows: Sequence[dict[str, Any]], names: Sequence[str], kind: pa.DataType, taken: set[str]
) -> pa.Array:
    """The values of the first of `names` that fits, taken out of `rows`, or their name added to `taken`."""
    if not names:
        return pa.nulls(len(rows), kind)
    if len(names) == 1:
        values = [row.get(names[0]) for row in rows]
        if {*map(type, values)} <= {*_PYTHON[kind], type(None)}:
            try:
                column = pa.array(values, kind)
                taken.add(names[0])
                return column
            except _UNFIT:
                pass  # a number beyond 64 bits, or half a surrogate pair
    return pa.array([_take(row, names, kind) for row in rows], kind)


def _take(row: dict[str, Any], names: Sequence[str], kind: pa.DataType) -> Any:
    found = None
    for name in names:
        value = row.get(name)
        if value is None or (found is None and (found := _fitting(value, kind)) is not None):
            row.pop(name, None)
    return found


def _fitting(value: Any, kind: pa.DataType) -> Any:
    """`value` as one of the kind, or None."""
    try:
        if kind == pa.string() and not isinstance(value, str):
            value = _encode(value)
        elif kind == pa.int64() and isinstance(value, float) and value.is_integer():
            value = int(value)
        return pa.scalar(value, kind).as_py() if type(value) in _PYTHON[kind] else None
    except _UNFIT:
        return None


def _rest(row: dict[str, Any], taken: set[str], text: str) -> str | None:
    """The fields of `row` that are not `taken`, or all of them, as in `text`, where json can't write them."""
    if row.keys() <= taken:
        return None
    try:
        rest = _encode({name: value for name, value in row.items() if name not in taken})
        if not rest.isascii():
            rest.encode()  # raises for half a surrogate pair
        return rest
    except (ValueError, RecursionError):  # nested too deep, or infinite, as 1e400 is
        return text
