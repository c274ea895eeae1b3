"""Conditions in SQL on the columns of the scores, which DuckDB evaluates: `--where`.

An expression sees one row at a time: no other table, file, setting, aggregate or window. NULL keeps nothing,
and neither does a row for which the expression fails, such as a cast of text. NaN and x / 0 are NULL.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dali_aesthetic.layout import DERIVED

if TYPE_CHECKING:
    import duckdb  # else imported where it is used: a run without a condition starts 75 ms earlier

_SETTINGS = {
    "threads": "1",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "enable_external_access": "false",
    "error_on_division_by_zero": "false",
    "ieee_floating_point_ops": "false",
    "lock_configuration": "true",  # the last one: it locks the others
}
_CLASSES = {
    *("COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "FUNCTION", "CAST", "TYPE"),
    *("BETWEEN", "CASE", "COLLATE", "LAMBDA"),
}
"""The nodes of DuckDB's syntax tree that read nothing but their own row. A LAMBDA is also json -> 'name'."""
_ORDERS = {
    "COMPARE_GREATERTHANOREQUALTO": (True, True),
    "COMPARE_GREATERTHAN": (True, False),
    "COMPARE_LESSTHANOREQUALTO": (False, True),
    "COMPARE_LESSTHAN": (False, False),
}
"""Whether such a comparison keeps what is above, and whether it keeps the number itself."""
_NUMBERS, _LARGEST = ("INTEGER", "NUMERIC"), 1e30
_MACROS = {"if", "nullif", "split_part"}
_FUNCTIONS = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type = 'scalar' AND "
_NAMED = 60


class Bound(NamedTuple):
    """A conjunct that compares a `value`, in SQL, with a number: those from `cut` on are above.

    `keeps_above` tells which side the conjunct keeps.
    """

    part: str
    value: str
    cut: float
    keeps_above: bool


class Predicate:
    """A condition on rows with the columns `kinds`, by name; `flag` names it in messages.

    It holds if each of its `conjuncts` does, the parts that AND joins at the top. `columns` are those of
    `kinds` that it reads. For use in one thread.

    Raises ValueError for what is no condition, names no column of `kinds`, or reads more than its row.
    """

    def __init__(self, expression: str, kinds: Mapping[str, pa.DataType], flag: str = "--where") -> None:
        self._flag = f"{flag} {expression!r}"
        tree = parse(expression, flag)
        self.conjuncts = tuple(dict.fromkeys(map(_text, _conjuncts(tree))))
        stored = {name.casefold(): name for name in kinds}
        derived = {
            name: {"width", "height", needed} - {""}
            for name, (_, needed) in DERIVED.items()
            if name not in stored and stored.keys() >= {"width", "height", needed} - {""}
        }
        used = {self._known(path, [*kinds, *derived]) for path in _column_names(tree)}
        read = {stored[one] for name in used for one in derived.get(name, {name})}
        self.columns = [name for name in kinds if name in read] or list(kinds)[:1]
        rows = ", ".join(_selected(name, kinds[name]) for name in self.columns)
        made = "".join(f", {DERIVED[name][0]} AS {name}" for name in sorted(used & derived.keys()))
        source = f"FROM (SELECT *{made} FROM (SELECT {rows} FROM given))"
        self._rows = _Rows(pa.schema([(name, kinds[name]) for name in self.columns]).empty_table())
        self._connection = _connect()
        self._connection.register("given", self._rows)
        self._check(source)
        marks = (f"coalesce(TRY({one}), false) AS c{i}" for i, one in enumerate(self.conjuncts))
        self._connection.execute(f"PREPARE marks AS SELECT {', '.join(marks)} {source}")
        bounds = {_text(one): bound for one in _conjuncts(tree) if (bound := _bound(one))}
        self.bounds = [Bound(part, *bound) for part, bound in bounds.items()]
        values = (f"TRY_CAST(TRY({one.value}) AS FLOAT) AS v{i}" for i, one in enumerate(self.bounds))
        self._connection.execute(f"PREPARE bounded AS SELECT {', '.join(values) or 'NULL'} {source}")

    def _known(self, path: list[str], names: Iterable[str]) -> str:
        known = {name.casefold(): name for name in names}
        if (given := ".".join(path).casefold()) in known:
            return given
        close = difflib.get_close_matches(given, known, 1)
        meant = f"did you mean {known[close[0]]}? " if close else ""
        listed = list(known.values())
        more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
        raise ValueError(
            f"{self._flag}: there is no column {'.'.join(path)}: {meant}"
            f"The columns are {', '.join(listed[:_NAMED])}{more}"
        )

    def _check(self, source: str) -> None:
        """Raises ValueError for a conjunct that doesn't fit the columns' types, or is no condition."""
        import duckdb

        for conjunct in self.conjuncts:
            try:
                found = self._connection.execute(f"SELECT {conjunct} AS c {source}")
                ((_, kind, *_),) = found.description
                found.fetchall()
            except duckdb.Error as error:
                reason = str(error).splitlines()[0].partition(": ")[2]
                raise ValueError(f"{self._flag}: {reason or error}") from None
            if kind not in ("BOOLEAN", '"NULL"'):
                raise ValueError(
                    f"{self._flag}: {conjunct} is of the type {kind}, not true or false: compare it, as in "
                    f"{conjunct} {'=' if kind == 'VARCHAR' else '>='} …"
                )

    def passes(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """True where a conjunct holds, bool [R, C]. `table` has the `columns` among others."""
        return np.stack([np.asarray(marks, np.bool_) for marks in self._execute("marks", table)], axis=1)

    def values(self, table: pa.Table) -> list[npt.NDArray[np.float32]]:
        """What each of the `bounds` compares, float32 [R], NaN where it is NULL."""
        found = self._execute("bounded", table)[: len(self.bounds)]
        return [np.ma.filled(values.astype(np.float32), np.nan) for values in found]

    def _execute(self, statement: str, table: pa.Table) -> list[Any]:
        given, schema = table.select(self.columns), self._rows.schema
        self._rows.table = given if given.schema.equals(schema) else given.cast(schema)
        found = self._connection.execute(f"EXECUTE {statement}").fetchnumpy()
        self._rows.table = table.slice(0, 0)  # nothing is kept alive
        return list(found.values())

    @staticmethod
    def removed(passes_RC: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """The rows that each part of a cut removes, int64 [2, C]: alone, and after the parts before it."""
        left_C = np.logical_and.accumulate(passes_RC, axis=1).sum(axis=0)
        alone_C = len(passes_RC) - passes_RC.sum(axis=0)
        return np.stack([alone_C, -np.diff(left_C, prepend=len(passes_RC))])

    def holds(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """True where the whole condition holds, bool [R]."""
        return np.asarray(self.passes(table).all(axis=1), np.bool_)


def parse(expression: str, flag: str = "--where") -> dict[str, Any]:
    """DuckDB's syntax tree of a condition. Raises ValueError for anything but one on a single row."""
    import duckdb

    given = f"{flag} {expression!r}"
    try:
        tree = _tree(expression, given)
        _text(tree)  # DuckDB reads 256 levels of a tree
    except (RecursionError, duckdb.SerializationException):
        raise ValueError(f"{given} nests too deeply: give one with fewer operators in a row") from None
    return tree


def _tree(expression: str, given: str) -> dict[str, Any]:
    # On a line of its own, so that a comment in it ends, and without brackets that it could close.
    found = _syntax(f"SELECT\n{expression}\n")
    if found["error"]:
        raise ValueError(f"{given} is no condition in SQL: {found['error_message'].splitlines()[0]}")
    nodes = [_without_places(statement["node"]) for statement in found["statements"]]
    trees = nodes[0].pop("select_list", [])
    if nodes != [_plain_select()] or len(trees) != 1 or trees[0]["alias"]:
        raise ValueError(
            f"{given} is more than a condition: give one, such as 'width >= 512 AND punsafe < 0.5'"
        )
    tree: dict[str, Any] = trees[0]
    for part in _nodes(tree):
        if part["class"] not in _CLASSES:
            what = part["class"].lower().replace("_", " ")
            raise ValueError(f"{given} holds a {what}: a condition reads its own row and nothing else")
        if part["class"] == "FUNCTION":
            _check_function(part, given)
    return tree


def _check_function(part: dict[str, Any], given: str) -> None:
    name = part["function_name"]
    if name.casefold() not in _scalar_functions() or part["schema"] or part["catalog"] or part["filter"]:
        close = difflib.get_close_matches(name, _scalar_functions(), 1)
        meant = f"; did you mean {close[0]}?" if close and close[0] != name else ""
        raise ValueError(f"{given} calls {name}, which is no function of a single row{meant}")


@cache
def _scalar_functions() -> set[str]:
    """The functions that give the same for the same row: not random(), now() or current_setting()."""
    with _connect() as connection:
        found = connection.execute(f"{_FUNCTIONS} stability = 'CONSISTENT'").fetchall()
    return {name.casefold() for (name,) in found if not name.startswith("__internal")} | _MACROS


@cache
def _plain_select() -> dict[str, Any]:
    """The node of a SELECT without FROM or anything else, its list left out."""
    node: dict[str, Any] = _without_places(_syntax("SELECT 1")["statements"][0]["node"])
    del node["select_list"]
    return node


def _syntax(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_ask("SELECT json_serialize_sql(?)", text))
    return found


def _ask(query: str, value: str) -> str:
    with _connect() as connection:
        return str(connection.execute(query, [value]).fetchall()[0][0])


def _connect() -> duckdb.DuckDBPyConnection:
    return _database().cursor()


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """A database in memory that reaches no file and no network, and whose settings are locked."""
    import duckdb

    database = duckdb.connect(":memory:")
    for name, value in _SETTINGS.items():
        database.execute(f"SET GLOBAL {name} = {value}")
    return database


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "class" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _nodes(one)


def _column_names(tree: dict[str, Any]) -> Iterator[list[str]]:
    for part in _nodes(tree):
        if part["class"] == "COLUMN_REF":
            yield part["column_names"]


def _conjuncts(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if tree["type"] != "CONJUNCTION_AND":
        yield tree
        return
    for child in tree["children"]:
        yield from _conjuncts(child)


def _bound(tree: dict[str, Any]) -> tuple[str, float, bool] | None:
    """Value, cut and side of a comparison with a number, for `Bound`; None for anything else."""
    order = _ORDERS.get(tree["type"])
    if order is None or "literal" not in tree["right"] or tree["right"]["literal"]["kind"] not in _NUMBERS:
        return None
    number, (above, inclusive) = float(tree["right"]["literal"]["text"]), order
    if not abs(number) < _LARGEST:
        return None
    cut = np.float32(number)
    cut = cut if inclusive == above else np.nextafter(cut, np.float32(np.inf))
    return _text(tree["left"]), float(cut), above


def _text(tree: dict[str, Any]) -> str:
    """The SQL of an expression, as DuckDB writes it."""
    select = {"error": False, "statements": [{"node": _plain_select() | {"select_list": [tree]}}]}
    text = _ask("SELECT json_deserialize_sql(?::JSON)", json.dumps(select)).removeprefix("SELECT ")
    depths = [text[:end].count("(") - text[:end].count(")") for end in range(1, len(text))]
    text = text[1:-1] if text[0] + text[-1] == "()" and min(depths) > 0 else text
    return re.sub(r"^(\w+) ~~ ", r"\1 LIKE ", text)


def _without_places(value: Any) -> Any:
    """A node without its places in the text."""
    if isinstance(value, dict):
        return {key: _without_places(one) for key, one in value.items() if not key.startswith("query_loc")}
    return [_without_places(one) for one in value] if isinstance(value, list) else value


def _selected(name: str, kind: pa.DataType) -> str:
    quoted = '"' + name.replace('"', '""') + '"'
    if pa.types.is_floating(kind):
        return f"CASE WHEN isnan({quoted}) THEN NULL ELSE {quoted} END AS {quoted}"
    return quoted


class _Rows:
    """A table that DuckDB reads at every query anew: registering one each time takes as long as a query."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.schema = table.schema

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)

    def __arrow_c_schema__(self) -> Any:
        return self.schema.__arrow_c_schema__()
