"""The thresholds a reader can choose: decimal steps over the range of the scores, exact in float32.

Every edge is the float32 nearest to a short decimal, which is what `--raw-threshold` makes of that decimal.
A count at an edge therefore is the count that a run with that threshold gets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_STEPS = 800
STEPS_PER_BAR = 10
STEPS_PER_BAND = 50
_WIDEST = 1e6


@dataclass(frozen=True, slots=True)
class Grid:
    """`edges_E` rise strictly; the first keeps every score, the last keeps none.

    `step` is the distance of the regular edges; named cuts lie between them. `bars` and `bands` are every
    tenth and every fiftieth of the regular ones, at least covering the range: subsets of `edges_E`.
    """

    edges_E: npt.NDArray[np.float32]
    bars: npt.NDArray[np.float32]
    bands: npt.NDArray[np.float32]
    step: float

    def index(self, cut: float) -> int:
        """The edge nearest to `cut`; the edge itself where it is one."""
        return int(np.abs(self.edges_E.astype(np.float64) - float(np.float32(cut))).argmin())


def make_grid(low: float, high: float, cuts: Iterable[float] = ()) -> Grid:
    """A grid over `low` to `high` (lowest and highest score), with the `cuts` as further edges.

    Infinite ends are taken as a million. At most `MAX_STEPS` regular steps lie inside the range.
    """
    low, high = max(low, -_WIDEST), min(high, _WIDEST)
    mantissa, exponent = _step((high - low) / MAX_STEPS, max(abs(low), abs(high)))
    size = mantissa * 10.0**exponent
    first = math.floor(low / size / STEPS_PER_BAND)
    last = math.floor(high / size / STEPS_PER_BAND) + 1
    # In float32 an edge may land on the highest score itself: one more, so that the last keeps none.
    last += bool(_decimals([last * STEPS_PER_BAND], mantissa, exponent)[0] <= np.float32(high))

    def every(steps: int) -> npt.NDArray[np.float32]:
        count = STEPS_PER_BAND // steps
        return _decimals(range(first * count, last * count + 1), mantissa * steps, exponent)

    named = np.array(list(cuts), np.float32)
    # Named cuts beyond the range would stretch the slider over thresholds that keep all or nothing.
    inside = named[(named > every(1)[0]) & (named < every(1)[-1])]
    edges = np.unique(np.concatenate([every(1), inside]))
    return Grid(edges, np.unique(every(STEPS_PER_BAR)), np.unique(every(STEPS_PER_BAND)), size)


def _step(wanted: float, magnitude: float) -> tuple[int, int]:
    """Mantissa (1, 2 or 5) and decimal exponent of the first nice step from `wanted` up.

    Never so fine that float32 can't tell neighbours apart at `magnitude`.
    """
    wanted = max(wanted, magnitude * 1e-6, 1e-9)
    exponent = math.floor(math.log10(wanted))
    for mantissa in (1, 2, 5):
        if mantissa * 10.0**exponent >= wanted * (1 - 1e-9):
            return mantissa, exponent
    return 1, exponent + 1


def _decimals(multiples: Iterable[int], mantissa: int, exponent: int) -> npt.NDArray[np.float32]:
    """`k * mantissa * 10**exponent` for every k, each rounded once to double, as a decimal is when read."""
    scale = 10 ** abs(exponent)
    if exponent < 0:
        return np.array([k * mantissa / scale for k in multiples], np.float64).astype(np.float32)
    return np.array([k * mantissa * scale for k in multiples], np.float64).astype(np.float32)


def decimal(value: np.float32 | float) -> float:
    """The shortest decimal that reads back as this float32."""
    return float(str(np.float32(value)))
