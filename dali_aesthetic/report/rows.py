"""The scores of an output as the report reads them: committed shards, columns, ranges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.layout import BadStats, committed_names, read_stats, scored_by, scores_file

FIRST_HEAD = "aesthetic_score"
NORMALISED = "aesthetic_score_01"
_ENCODED = ["status"]


class NothingToReport(ValueError):
    """The output holds no committed shard, or not the column that was asked for."""


@dataclass(frozen=True, slots=True)
class ShardScores:
    """One committed shard: the content of its stats, and the path of its scores."""

    name: str
    path: Path
    stats: dict[str, Any]

    def read(self, columns: Sequence[str], rows: Sequence[int] | None = None) -> pa.Table:
        """The columns in this order, of all rows or the given ones."""
        with pq.ParquetFile(self.path, read_dictionary=_ENCODED) as file:
            table = file.read(columns=list(columns)).select(list(columns))
        return table if rows is None else table.take(pa.array(rows, pa.int64()))


def committed_shards(output: Path) -> list[ShardScores]:
    """The committed shards in name order. Raises `NothingToReport` where there is none."""
    try:
        shards = [
            ShardScores(name, output / scores_file(name), read_stats(output, name))
            for name in sorted(committed_names(output))
        ]
    except BadStats as error:
        raise NothingToReport(str(error)) from None
    if not shards:
        raise NothingToReport(f"{output} holds no committed shard: give the output folder of a run")
    if missing := [shard.path for shard in shards if not shard.path.is_file()]:
        raise NothingToReport(f"{len(missing)} score files are missing, such as {missing[0]}")
    return shards


def recorded_heads(record: dict[str, Any]) -> list[str]:
    """The names of the heads, the deciding one first; empty if the record has none."""
    names = scored_by(record).get("heads", [])
    return [str(name) for name in names] if isinstance(names, list) else []


def head_columns(shards: Sequence[ShardScores], heads: Sequence[str] = ()) -> list[str]:
    """The score columns of `heads`, the deciding one first; without heads the columns that look like scores.

    Scores are float32, which a json field with such a name never is.
    """
    scores = [
        name for name, kind in stored_columns(shards).items() if kind == pa.float32() and name != NORMALISED
    ]
    prefixed = ((name, f"{FIRST_HEAD}_{name}") for name in heads[1:])
    others = [column if column in scores else name for name, column in prefixed]  # punsafe has no prefix
    if not heads or not set(others) <= set(scores):
        others = [column for column in scores if column.startswith(f"{FIRST_HEAD}_")]
    return [FIRST_HEAD, *others]


def stored_columns(shards: Sequence[ShardScores]) -> dict[str, pa.DataType]:
    """The columns of the scores."""
    schema = pq.read_schema(shards[0].path)
    return dict(zip(schema.names, schema.types, strict=True))


def check_column(shards: Sequence[ShardScores], column: str) -> None:
    """Raises `NothingToReport` with the available columns where the shards have no `column`."""
    names = stored_columns(shards)
    if column not in names:
        raise NothingToReport(
            f"--by {column}: no such column; there are {', '.join(names)}. --columns {column} makes one of a "
            "json field, also with `filter`"
        )


def score_range(shards: Iterable[ShardScores], column: str) -> tuple[float, float] | None:
    """The lowest and highest score, from the files' statistics alone; None where nothing was scored."""
    lows, highs = [], []
    for shard in shards:
        metadata = pq.read_metadata(shard.path)
        index = metadata.schema.names.index(column)
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(index).statistics
            if statistics is not None and statistics.has_min_max:
                lows.append(statistics.min)
                highs.append(statistics.max)
    return (float(min(lows)), float(max(highs))) if lows else None
