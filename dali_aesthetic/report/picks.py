"""Which samples the page shows: a few of every score band, evenly from all shards, and those at the cut."""

from __future__ import annotations

import heapq
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dali_aesthetic.report.grid import Grid, decimal
from dali_aesthetic.report.rows import ShardScores

PER_BAND = 8
AT_CUT = 12


@dataclass(frozen=True, slots=True)
class Pick:
    """One chosen sample: row `row` of its shard's scores."""

    shard: ShardScores
    row: int
    score: float
    kept: bool


class Picks:
    """Chooses while the shards pass by; what is chosen does not depend on their order or on the time."""

    def __init__(self, grid: Grid, cut: float) -> None:
        self._bands = grid.bands
        self._cut = np.float32(cut)
        self._by_band: list[list[tuple[float, int, Pick]]] = [[] for _ in range(len(self._bands) - 1)]
        self._below: list[tuple[float, int, Pick]] = []
        self._above: list[tuple[float, int, Pick]] = []
        self._serial = 0

    def add(
        self, shard: ShardScores, scores_R: npt.NDArray[np.float32], kept_R: npt.NDArray[np.bool_]
    ) -> None:
        """Offers a shard's samples."""
        luck_R = np.random.default_rng(zlib.crc32(shard.name.encode())).random(len(scores_R))
        band_R = np.searchsorted(self._bands, scores_R, side="right") - 1
        band_R[np.isnan(scores_R)] = -1
        for band, chosen in enumerate(self._by_band):
            self._offer(chosen, np.flatnonzero(band_R == band), luck_R, PER_BAND, shard, scores_R, kept_R)
        gap_R = scores_R.astype(np.float64) - float(self._cut)
        for chosen, rows in ((self._below, gap_R < 0), (self._above, gap_R >= 0)):
            self._offer(chosen, np.flatnonzero(rows), np.abs(gap_R), AT_CUT, shard, scores_R, kept_R)

    def _offer(
        self,
        chosen: list[tuple[float, int, Pick]],
        rows: npt.NDArray[np.int64],
        rank_R: npt.NDArray[np.float64],
        most: int,
        shard: ShardScores,
        scores_R: npt.NDArray[np.float32],
        kept_R: npt.NDArray[np.bool_],
    ) -> None:
        """Keeps the `most` lowest ranks in `chosen`, a heap with the highest rank on top."""
        best = rows[np.argsort(rank_R[rows], kind="stable")[:most]]
        for row in best.tolist():
            rank = float(rank_R[row])
            if len(chosen) >= most and rank >= -chosen[0][0]:
                break
            self._serial -= 1
            pick = Pick(shard, row, decimal(scores_R[row]), bool(kept_R[row]))
            (heapq.heappushpop if len(chosen) >= most else heapq.heappush)(
                chosen, (-rank, self._serial, pick)
            )

    def bands(self) -> list[tuple[float, float, list[Pick]]]:
        """(from, to, picks in rising order) for every band that has a score, the highest band first."""
        edges = [decimal(edge) for edge in self._bands]
        bands = zip(edges[:-1], edges[1:], self._by_band, strict=True)
        return [(low, high, _rising(chosen)) for low, high, chosen in bands if chosen][::-1]

    def at_cut(self) -> list[Pick]:
        """The samples nearest to the cut on either side, in rising order."""
        return _rising(self._below) + _rising(self._above)


def _rising(chosen: list[tuple[float, int, Pick]]) -> list[Pick]:
    return sorted((pick for _, _, pick in chosen), key=lambda pick: (pick.score, pick.shard.name, pick.row))
