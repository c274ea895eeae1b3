"""How many scores lie at or above every threshold of a grid. Counts are exact; no score is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dali_aesthetic.report.grid import Grid, decimal

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


class Distribution:
    """Counts of scores between the edges of `grid`. NaN counts nowhere."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._counts = np.zeros(len(grid.edges_E) + 1, np.int64)
        self._counts_up_to = np.zeros(len(grid.edges_E) + 1, np.int64)
        self._sum = 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, scores_R: npt.NDArray[np.float32]) -> None:
        """Counts these scores."""
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
        """How many scores there are."""
        return int(self._counts.sum())

    @property
    def mean(self) -> float:
        return self._sum / self.total if self.total else math.nan

    def at_least(self) -> npt.NDArray[np.int64]:
        """For every edge, how many scores `score >= edge` keeps, compared in float32."""
        return self._counts[::-1].cumsum()[::-1][1:]

    def above(self) -> npt.NDArray[np.int64]:
        """For every edge, how many scores are greater: what an inclusive upper bound there leaves out."""
        return self._counts_up_to[::-1].cumsum()[::-1][1:]

    def kept_at(self, cut: float) -> int | None:
        """How many scores a threshold keeps; None where the grid has no such edge and can't tell."""
        edge = np.float32(cut)
        edges = self.grid.edges_E
        if edge < edges[0]:
            return self.total
        if edge > edges[-1]:
            return 0
        place = int(np.searchsorted(edges, edge))
        return int(self.at_least()[place]) if edges[place] == edge else None

    def between(self, edges: npt.NDArray[np.float32]) -> list[int]:
        """How many scores lie in [edge, next edge) for neighbours of `edges`, which are edges of the grid."""
        at_least = self.at_least()[np.searchsorted(self.grid.edges_E, edges)]
        found: list[int] = (at_least[:-1] - at_least[1:]).tolist()
        return found

    def quantiles(self, shares: Sequence[float] = QUANTILES) -> list[tuple[float, float]]:
        """(share, threshold): the highest edge that at least 1 - share of the scores reach.

        It lies at most one step of the grid below the exact quantile. Empty where nothing was scored.
        """
        if not self.total:
            return []
        at_least = self.at_least()
        needed = [self.total - math.floor(share * self.total + 1e-9) for share in shares]
        last = [int(np.flatnonzero(at_least >= max(count, 1))[-1]) for count in needed]
        return [(share, decimal(self.grid.edges_E[i])) for share, i in zip(shares, last, strict=True)]
