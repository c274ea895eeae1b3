"""Counts of scores over a grid of thresholds. They are exact, and no score is kept in memory.

The edges of a grid are decimal steps over the range of the scores. Each is the float32 nearest to a short
decimal, which is what `--raw-threshold` makes of that decimal: the count at an edge is the count that a run
with that threshold keeps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dali_aesthetic.report.rows import NothingToReport, ShardScores, check_column

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
MAX_STEPS = 800
STEPS_PER_BAR = 10
STEPS_PER_BAND = 50
_WIDEST = 1e6
MOST_VALUES = 20
MOST_DISTINCT = 100_000
NOTHING, OTHERS = "(not set)", "(all others)"
_MAX_TEXT = 120


class Distribution:
    """Counts of scores between the edges of `grid`; NaN is not counted."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._counts = np.zeros(len(grid.edges_E) + 1, np.int64)
        self._counts_up_to = np.zeros(len(grid.edges_E) + 1, np.int64)
        self._sum = 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, scores_R: npt.NDArray[np.float32]) -> None:
        scored = scores_R[~np.isnan(scores_R)]
        if not len(scored):
            return
        places = np.searchsorted(self.grid.edges_E, scored, side="right")
        self._counts += np.bincount(places, minlength=len(self._counts))
        places = np.searchsorted(self.grid.edges_E, scored, side="left")
        self._counts_up_to += np.bincount(places, minlength=len(self._counts))
        with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
            self._sum += float(scored.sum(dtype=np.float64))
        self.low = min(self.low, float(scored.min()))
        self.high = max(self.high, float(scored.max()))

    @property
    def total(self) -> int:
        return int(self._counts.sum())

    @property
    def mean(self) -> float:
        return self._sum / self.total if self.total else math.nan

    def at_least(self) -> npt.NDArray[np.int64]:
        """For every edge, the number of scores with `score >= edge`, compared in float32."""
        return self._counts[::-1].cumsum()[::-1][1:]

    def above(self) -> npt.NDArray[np.int64]:
        """For every edge, the number of scores above it: what an inclusive upper bound there excludes."""
        return self._counts_up_to[::-1].cumsum()[::-1][1:]

    def kept_at(self, cut: float) -> int | None:
        """The number of scores that a threshold keeps; None if it lies between two edges."""
        edge = np.float32(cut)
        edges = self.grid.edges_E
        if edge < edges[0]:
            return self.total
        if edge > edges[-1]:
            return 0
        place = int(np.searchsorted(edges, edge))
        return int(self.at_least()[place]) if edges[place] == edge else None

    def between(self, edges: npt.NDArray[np.float32]) -> list[int]:
        """The number of scores in [edge, next edge) for `edges`, a subset of the grid's."""
        at_least = self.at_least()[np.searchsorted(self.grid.edges_E, edges)]
        found: list[int] = (at_least[:-1] - at_least[1:]).tolist()
        return found

    def quantiles(self, shares: Sequence[float] = QUANTILES) -> list[tuple[float, float]]:
        """(share, threshold) pairs: the highest edge that at least 1 - share of the scores reach.

        It is at most one step of the grid below the exact quantile. Empty where nothing was scored.
        """
        if not self.total:
            return []
        at_least = self.at_least()
        needed = [self.total - math.floor(share * self.total + 1e-9) for share in shares]
        last = [int(np.flatnonzero(at_least >= max(count, 1))[-1]) for count in needed]
        return [(share, decimal(self.grid.edges_E[i])) for share, i in zip(shares, last, strict=True)]


@dataclass(frozen=True, slots=True)
class Grid:
    """`edges_E` is strictly increasing; the first edge keeps every score, the last one none.

    `step` is the distance between regular edges; named cuts lie between them. `bars` and `bands` are every
    tenth and every fiftieth regular edge, and cover the range.
    """

    edges_E: npt.NDArray[np.float32]
    bars: npt.NDArray[np.float32]
    bands: npt.NDArray[np.float32]
    step: float

    def index(self, cut: float) -> int:
        """The index of the edge nearest to `cut`."""
        return int(np.abs(self.edges_E.astype(np.float64) - float(np.float32(cut))).argmin())


def make_grid(low: float, high: float, cuts: Iterable[float] = ()) -> Grid:
    """A grid over the scores from `low` to `high`, with `cuts` as further edges.

    Infinite bounds are clipped to a million. At most `MAX_STEPS` regular steps lie inside the range.
    """
    low, high = max(low, -_WIDEST), min(high, _WIDEST)
    mantissa, exponent = _step((high - low) / MAX_STEPS, max(abs(low), abs(high)))
    size = mantissa * 10.0**exponent
    first = math.floor(low / size / STEPS_PER_BAND)
    last = math.floor(high / size / STEPS_PER_BAND) + 1
    # In float32 an edge may equal the highest score: one more, so that the last one keeps none.
    last += bool(_decimals([last * STEPS_PER_BAND], mantissa, exponent)[0] <= np.float32(high))

    def every(steps: int) -> npt.NDArray[np.float32]:
        count = STEPS_PER_BAND // steps
        return _decimals(range(first * count, last * count + 1), mantissa * steps, exponent)

    named = np.array(list(cuts), np.float32)
    # Cuts outside the range would stretch the slider over thresholds that keep all or nothing.
    inside = named[(named > every(1)[0]) & (named < every(1)[-1])]
    edges = np.unique(np.concatenate([every(1), inside]))
    return Grid(edges, np.unique(every(STEPS_PER_BAR)), np.unique(every(STEPS_PER_BAND)), size)


def _step(wanted: float, magnitude: float) -> tuple[int, int]:
    """Mantissa (1, 2 or 5) and decimal exponent of the smallest step of at least `wanted`.

    It is large enough for float32 to separate neighbours at `magnitude`.
    """
    wanted = max(wanted, magnitude * 1e-6, 1e-9)
    exponent = math.floor(math.log10(wanted))
    for mantissa in (1, 2, 5):
        if mantissa * 10.0**exponent >= wanted * (1 - 1e-9):
            return mantissa, exponent
    return 1, exponent + 1


def _decimals(multiples: Iterable[int], mantissa: int, exponent: int) -> npt.NDArray[np.float32]:
    """`k * mantissa * 10**exponent` for every k, rounded once to double, as when a decimal is parsed."""
    whole, scale = np.array([k * mantissa for k in multiples], np.float64), 10.0 ** abs(exponent)
    return (whole / scale if exponent < 0 else whole * scale).astype(np.float32)


def decimal(value: np.float32 | float) -> float:
    """The shortest decimal that parses to this float32."""
    return float(str(np.float32(value)))


class Groups:
    """The distribution of the scores for each frequent value of a column, and one for all others."""

    def __init__(self, column: str, values: Sequence[str | None], grid: Grid) -> None:
        self.column = column
        self._values = list(values)
        self._distributions = [Distribution(grid) for _ in range(len(self._values) + 1)]

    def add(self, table: pa.Table, scores_R: npt.NDArray[np.float32]) -> None:
        """Counts the scores of a shard by value."""
        texts = table.column(self.column).cast(pa.string())
        places = pc.index_in(texts, pa.array(self._values, pa.string()))
        place_R = places.fill_null(len(self._values)).to_numpy()
        for place in np.unique(place_R).tolist():
            self._distributions[place].add(scores_R[place_R == place])

    def distributions(self) -> list[tuple[str, Distribution]]:
        """(value, distribution) pairs, the most frequent value first, without those that have no score."""
        names = [NOTHING if value is None else shortened(value, _MAX_TEXT) for value in self._values]
        pairs = zip([*names, OTHERS], self._distributions, strict=True)
        return [(name, distribution) for name, distribution in pairs if distribution.total]


def frequent_values(shards: Sequence[ShardScores], column: str) -> list[str | None]:
    """The most frequent values of the column, by number of samples.

    Raises `NothingToReport` where there is no such column, or it has too many different values.
    """
    check_column(shards, column)
    counts: Counter[str | None] = Counter()
    for shard in shards:
        found = shard.read([column]).column(column).cast(pa.string()).value_counts()
        counts.update(dict(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True)))
        if len(counts) > MOST_DISTINCT:
            raise NothingToReport(
                f"--by {column}: more than {MOST_DISTINCT:,} different values; give a column that groups"
            )
    ranked = sorted(counts.items(), key=lambda one: (-one[1], one[0] is None, one[0] or ""))
    return [value for value, _ in ranked[:MOST_VALUES]]


def shortened(text: str, most: int) -> str:
    """The text, or its first characters and an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"
