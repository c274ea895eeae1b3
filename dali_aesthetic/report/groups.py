"""Keep rate by a column of the user's: which part of the data a threshold takes away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dali_aesthetic.report.distribution import Distribution
from dali_aesthetic.report.grid import Grid
from dali_aesthetic.report.rows import NothingToReport, ShardScores, check_column

MOST_VALUES = 20
MOST_DISTINCT = 100_000
NOTHING, OTHERS = "(not set)", "(all others)"
_MAX_TEXT = 120


class Groups:
    """Distributions of the scores by the most frequent values of a column, the others as one."""

    def __init__(self, column: str, values: Sequence[str | None], grid: Grid) -> None:
        self.column = column
        self._values = list(values)
        self._distributions = [Distribution(grid) for _ in range(len(self._values) + 1)]

    def add(self, table: pa.Table, scores_R: npt.NDArray[np.float32]) -> None:
        """Counts a shard's scores by the value of its rows."""
        texts = _texts(table.column(self.column))
        places = pc.index_in(texts, pa.array(self._values, pa.string()))
        place_R = places.fill_null(len(self._values)).to_numpy()
        for place in np.unique(place_R).tolist():
            self._distributions[place].add(scores_R[place_R == place])

    def distributions(self) -> list[tuple[str, Distribution]]:
        """(value, distribution), the most frequent value first; those without any score are left out."""
        names = [NOTHING if value is None else _short(value) for value in self._values]
        pairs = zip([*names, OTHERS], self._distributions, strict=True)
        return [(name, distribution) for name, distribution in pairs if distribution.total]


def frequent_values(shards: Iterable[ShardScores], column: str) -> list[str | None]:
    """The column's most frequent values, by number of samples.

    Raises `NothingToReport` where no shard has the column or it tells nearly every sample from every other.
    """
    shards = list(shards)
    check_column(shards, column)
    counts: Counter[str | None] = Counter()
    for shard in shards:
        found = _texts(shard.read([column]).column(column)).value_counts()
        counts.update(dict(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True)))
        if len(counts) > MOST_DISTINCT:
            raise NothingToReport(
                f"--by {column}: more than {MOST_DISTINCT:,} different values; give a column that groups"
            )
    ranked = sorted(counts.items(), key=lambda one: (-one[1], one[0] is None, one[0] or ""))
    return [value for value, _ in ranked[:MOST_VALUES]]


def _texts(column: pa.ChunkedArray) -> pa.Array:
    """The values as strings, whatever type this shard's column has."""
    joined = column.combine_chunks()
    if isinstance(joined, pa.ChunkedArray):
        joined = joined.chunk(0) if joined.num_chunks else pa.array([], column.type)
    return joined.cast(pa.string())


def _short(value: str) -> str:
    return value if len(value) <= _MAX_TEXT else value[: _MAX_TEXT - 1] + "…"
