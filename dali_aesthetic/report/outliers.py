"""Shards that differ from the others in mean score, keep rate or share of bad samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ODD_FROM = 3.5
"""Robust z-score from which a shard is named (Iglewicz and Hoaglin's rule)."""
FEWEST_SHARDS = 5
"""Below this many shards there is no crowd to stand out from."""
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, slots=True)
class ShardFigures:
    """Sums of one shard; `spread` is the standard deviation of its scores (0 for fewer than two)."""

    name: str
    source: str
    num_samples: int
    num_scored: int
    num_kept: int
    mean: float
    spread: float
    damage: str = ""

    @property
    def keep_rate(self) -> float:
        return self.num_kept / self.num_scored if self.num_scored else math.nan

    @property
    def bad_share(self) -> float:
        return 1 - self.num_scored / self.num_samples if self.num_samples else math.nan


@dataclass(frozen=True, slots=True)
class Outlier:
    """A shard, what is odd about it, and by how many robust standard deviations."""

    shard: ShardFigures
    what: str
    value: float
    typical: float
    sigmas: float


def find_outliers(shards: Sequence[ShardFigures], most: int = 10) -> list[Outlier]:
    """The oddest shards first, at most `most`; each with its oddest figure.

    A figure is odd where it is more than `ODD_FROM` times the crowd's scale (1.4826 times the median
    absolute deviation, and no less than the shard's own sampling error) away from the median.
    """
    if len(shards) < FEWEST_SHARDS:
        return []
    measures = (
        ("mean score", [s.mean for s in shards], [_error_of_mean(s) for s in shards]),
        ("keep rate", [s.keep_rate for s in shards], _error_of_share(shards, "keep_rate", "num_scored")),
        ("bad share", [s.bad_share for s in shards], _error_of_share(shards, "bad_share", "num_samples")),
    )
    oddest: dict[str, Outlier] = {}
    for what, values, errors in measures:
        for outlier in _odd(shards, what, np.array(values), np.array(errors)):
            name = outlier.shard.name
            if name not in oddest or abs(outlier.sigmas) > abs(oddest[name].sigmas):
                oddest[name] = outlier
    return sorted(oddest.values(), key=lambda outlier: -abs(outlier.sigmas))[:most]


def _odd(
    shards: Sequence[ShardFigures],
    what: str,
    values: npt.NDArray[np.float64],
    errors: npt.NDArray[np.float64],
) -> list[Outlier]:
    if np.isnan(values).all():
        return []
    middle = float(np.nanmedian(values))
    crowd = _MAD_TO_SIGMA * float(np.nanmedian(np.abs(values - middle)))
    scale = np.maximum(np.maximum(crowd, errors), 1e-9)
    sigmas = (values - middle) / scale
    odd = np.flatnonzero(np.abs(sigmas) > ODD_FROM).tolist()
    return [Outlier(shards[i], what, float(values[i]), middle, float(sigmas[i])) for i in odd]


def _error_of_mean(shard: ShardFigures) -> float:
    return shard.spread / math.sqrt(shard.num_scored) if shard.num_scored else math.nan


def _error_of_share(shards: Sequence[ShardFigures], share: str, of: str) -> list[float]:
    """The sampling error of each shard's share, were it the typical one (and that at least one sample)."""
    shares = np.array([getattr(shard, share) for shard in shards])
    if np.isnan(shares).all():
        return [math.nan] * len(shards)
    middle = float(np.nanmedian(shares))
    sizes = [max(1, int(getattr(shard, of))) for shard in shards]
    return [max(math.sqrt(middle * (1 - middle) / n), 1 / n) for n in sizes]
