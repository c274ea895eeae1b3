"""Conditions against pandas on random tables, and all that a condition may not be."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dali_aesthetic.layout import DERIVED
from dali_aesthetic.predicate import Predicate
from dali_aesthetic.write.rows import condition_columns

KINDS = condition_columns(["v2", "punsafe"], ["seed:int", "nice:bool"])
NUMBERS = ("aesthetic_score", "punsafe", "width", "height", "num_bytes", "similarity", "seed", *DERIVED)
TEXTS = ("format", "caption", "NSFW")


def random_table(rng: np.random.Generator, rows: int) -> pa.Table:
    """Rows with every kind of column, a fifth of them null and some NaN or infinite."""
    columns = {}
    for name, kind in KINDS.items():
        if pa.types.is_floating(kind):
            values = rng.choice([0.0, 0.25, 0.5, 5.0, 5.5, np.nan, np.inf, -np.inf], rows).tolist()
        elif pa.types.is_integer(kind):
            values = rng.integers(1, 9, rows).tolist()
        elif pa.types.is_boolean(kind):
            values = (rng.random(rows) < 0.5).tolist()
        else:
            values = rng.choice(["jpeg", "png", "a photo", "5"], rows).tolist()
        columns[name] = pa.array([None if rng.random() < 0.2 else one for one in values], kind)
    return pa.table(columns)


def frame(table: pa.Table) -> pd.DataFrame:
    """The table and the derived columns in pandas, where NaN is null."""
    data = pd.DataFrame()
    for name, column in zip(table.column_names, table.columns, strict=True):
        data[name] = pd.array(column.to_pylist(), {"b": "boolean", "i": "Int64"}.get(str(column.type)[0]))
        if pa.types.is_floating(column.type):
            data[name] = data[name].astype("Float64").mask(data[name].isna())
    known = data.width.notna() & data.height.notna()
    short = data[["width", "height"]].min(axis=1).astype("Float64").where(known)
    long = data[["width", "height"]].max(axis=1).astype("Float64").where(known)
    data["min_side"], data["max_side"], data["aspect_ratio"] = short, long, long / short
    data["megapixels"] = data.width * data.height / 1e6
    data["bytes_per_pixel"] = data.num_bytes / (data.width * data.height)
    return data


Judge = Callable[[pd.DataFrame], pd.Series]


def random_condition(draw: random.Random, depth: int = 0) -> tuple[str, Judge]:
    """A condition in SQL, and the same in pandas with its three values."""
    if depth < 3 and draw.random() < 0.6:
        (left, first), (right, second) = random_condition(draw, depth + 1), random_condition(draw, depth + 1)
        if draw.random() < 0.2:
            return f"NOT ({left})", lambda data: ~first(data)
        if draw.random() < 0.6:
            return f"({left}) AND ({right})", lambda data: first(data) & second(data)
        return f"({left}) OR ({right})", lambda data: first(data) | second(data)
    name, value = draw.choice(NUMBERS), draw.choice([0.25, 1, 2, 5, 5.5, 0.000004])
    text, word = draw.choice(TEXTS), draw.choice(["jpeg", "5"])
    return draw.choice(
        [
            (f"{name} >= {value}", lambda data: data[name].astype("Float64") >= value),
            (f"{name} < {value}", lambda data: data[name].astype("Float64") < value),
            (f"{name} = {value}", lambda data: data[name].astype("Float64") == value),
            (f"{name} BETWEEN 1 AND {value}", lambda data: data[name].astype("Float64").between(1, value)),
            (f"{name} IS NULL", lambda data: data[name].isna().astype("boolean")),
            (f"{text.upper()} = '{word}'", lambda data: data[text].astype("string") == word),
            (f"{text} LIKE '%{word[1:]}%'", lambda data: _contains(data[text], word[1:])),
            ("nice", lambda data: data["nice"]),
        ]
    )


def _contains(column: pd.Series, part: str) -> pd.Series:
    return column.astype("string").str.contains(part, regex=False)


def test_any_condition_keeps_what_pandas_keeps() -> None:
    for seed in range(60):
        table = random_table(np.random.default_rng(seed), 200)
        text, judge = random_condition(random.Random(seed))
        predicate = Predicate(text, KINDS)
        expected = judge(frame(table)).fillna(False).to_numpy(bool)
        assert predicate.holds(table).tolist() == expected.tolist(), text
        parts = [Predicate(one, KINDS).holds(table) for one in predicate.conjuncts]
        assert predicate.passes(table).T.tolist() == [part.tolist() for part in parts], text


def test_a_score_is_compared_as_a_threshold_compares_it() -> None:
    scores = np.array([5.1, np.nextafter(np.float32(5.1), np.float32(0)), 0.1], np.float32)
    table = pa.table({"aesthetic_score": scores})
    assert Predicate("aesthetic_score >= 5.1", KINDS).holds(table).tolist() == [True, False, False]


def test_derived_columns() -> None:
    table = pa.table(
        {
            "width": pa.array([2000, 500, None, 2**31 - 1], pa.int32()),
            "height": pa.array([1000, 1500, 7, 2**31 - 1], pa.int32()),
            "num_bytes": pa.array([200_000, None, 5, 1]),
        }
    )
    for condition, kept in (
        ("min_side = 1000 OR min_side = 500", [True, True, False, False]),
        ("max_side = 2000 OR max_side = 1500", [True, True, False, False]),
        ("aspect_ratio = 2 OR aspect_ratio = 3", [True, True, False, False]),
        ("megapixels = 2 OR megapixels > 4e12", [True, False, False, True]),
        ("bytes_per_pixel = 0.1", [True, False, False, False]),
    ):
        assert Predicate(condition, KINDS).holds(table).tolist() == kept, condition


def test_a_row_for_which_the_condition_fails_is_not_kept() -> None:
    table = pa.table({"caption": ["12", "no number", None], "width": pa.array([10, 100, 100], pa.int32())})
    assert Predicate("caption::INT > 5", KINDS).holds(table).tolist() == [True, False, False]
    assert Predicate("ln(width - 50) > 0 AND true", KINDS).holds(table).tolist() == [False, True, True]
    assert Predicate("width / (width - 10) > 0 OR width = 10", KINDS).holds(table).all()


@pytest.mark.parametrize("order", [">=", ">", "<=", "<"])
def test_the_values_of_a_bound_lie_on_the_side_that_its_part_keeps(order: str) -> None:
    table = random_table(np.random.default_rng(3), 300)
    condition = f"aspect_ratio {order} 2 AND punsafe + 1 {order} 1.5 AND caption = '5' AND width <> 5"
    predicate = Predicate(condition, KINDS)
    assert [bound.value for bound in predicate.bounds] == ["aspect_ratio", "punsafe + 1"]
    for place, (bound, values) in enumerate(zip(predicate.bounds, predicate.values(table), strict=True)):
        known = ~np.isnan(values)
        assert 0 < known.sum() < 300
        kept = (values >= np.float32(bound.cut)) == bound.keeps_above
        assert (kept & known).tolist() == predicate.passes(table)[:, place].tolist()
    assert Predicate("caption = '5' AND width < 1e400", KINDS).values(table) == []


def test_a_condition_without_columns_and_one_of_a_table_without_rows() -> None:
    table = pa.table({name: pa.nulls(3, kind) for name, kind in KINDS.items()})
    assert Predicate("true", KINDS).holds(table).tolist() == [True] * 3
    assert Predicate("width > 1 AND true", KINDS).passes(table.slice(0, 0)).shape == (0, 2)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("", "no condition in SQL"),
        ("width >", 'no condition in SQL: syntax error at or near ">"'),
        ("width > 1) OR (true", "no condition in SQL"),
        ("width > 1; SELECT 1", "more than a condition"),
        ("width > 1; DROP TABLE given", "no condition"),
        ("width > 1, true", "more than a condition"),
        ("width > 1 AS x", "more than a condition"),
        ("true FROM given", "more than a condition"),
        ("true FROM 'scores/*.parquet'", "more than a condition"),
        ("width > 1 ORDER BY 1", "more than a condition"),
        ("width > 1 LIMIT 1", "more than a condition"),
        ("true UNION SELECT true", "more than a condition"),
        ("width > (SELECT 1)", "holds a subquery"),
        ("EXISTS (FROM read_text('/etc/passwd'))", "holds a subquery"),
        ("key IN (FROM given)", "holds a subquery"),
        ("row_number() OVER () < 5", "holds a window"),
        ("avg(width) > 5", "calls avg, which is no function of a single row"),
        ("count(*) FILTER (true) > 5", "calls count"),
        ("unnest([true])", "calls unnest"),
        ("random() < 0.5", "calls random"),
        ("now() > '2020-01-01'", "calls now"),
        ("current_setting('threads') = '1'", "calls current_setting"),
        ("getenv('HOME') = ''", "calls getenv"),
        ("read_text('/etc/passwd') = ''", "calls read_text"),
        ("nextval('x') = 1", "calls nextval"),
        ("lenght(caption) > 5", r"calls lenght, .*did you mean length\?"),
        ("main.lower(caption) = 'a'", "calls lower"),
        ("*", "holds a star"),
        ("columns('.*') > 1", "holds a star"),
        ("$1 > 1", "holds a parameter"),
        ("width", "width is of the type INTEGER, not true or false"),
        ("caption", "caption is of the type VARCHAR"),
        ("punsaf < 0.5", r"no column punsaf: did you mean punsafe\? The columns are key, status, "),
        ("scores.width > 1", "no column scores.width"),
        ("kept", "no column kept"),
        ("lower(width) = 'a'", "No function matches"),
        (f"{'NOT ' * 200}width > 1", "nests too deeply"),
        (f"width{' + 1' * 900} > 1", "nests too deeply"),
    ],
)
def test_what_is_no_condition_on_a_row_is_refused(condition: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Predicate(condition, KINDS)
    assert str(error.value).startswith(f"--where {condition!r}") or re.search("no column", str(error.value))


def test_the_database_reaches_no_file_extension_or_setting(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """What the syntax let through would still be refused."""
    import duckdb

    (tmp_path / "x.csv").write_text("a\n1\n")
    connection = Predicate("true", KINDS)._connection
    for query in (
        f"FROM '{tmp_path}/x.csv'",
        f"ATTACH '{tmp_path}/x.db'",
        f"COPY (SELECT 1) TO '{tmp_path}/y.csv'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET threads = 4",
        "SET enable_external_access = true",
    ):
        with pytest.raises(duckdb.Error, match=r"disabled|locked"):
            connection.execute(query)
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_a_stored_column_of_a_derived_name_is_the_stored_one() -> None:
    kinds = {"width": pa.int32(), "height": pa.int32(), "min_side": pa.int64()}
    table = pa.table(
        {"width": pa.array([5], pa.int32()), "height": pa.array([5], pa.int32()), "min_side": [7]}
    )
    assert Predicate("min_side = 7", kinds).holds(table).all()
    assert condition_columns(["v2"], ["min_side:int"])["json_min_side"] == pa.int64()
