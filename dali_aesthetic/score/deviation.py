"""How far the scores of one path are from those of another, and what that changes about what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """Absolute differences of raw scores over `num_images`, and decisions that change.

    `flips` and `kept` are numbers of images by the name of the cut: those that only one of the two keeps,
    and those the reference keeps. NaN where a score is none.
    """

    num_images: int
    mean_error: float
    p99_error: float
    max_error: float
    bias: float
    reference_std: float
    flips: Mapping[str, int]
    kept: Mapping[str, int]

    @property
    def worst_flips(self) -> float:
        """The largest share of images that change sides at one of the cuts."""
        return max(self.flips.values(), default=0) / self.num_images


def deviation(ours_N: Scores, reference_N: Scores, cuts: Mapping[str, float]) -> Deviation:
    """Compares scores of the same images at each of `cuts` (raw, by name; kept from there up).

    Raises ValueError for no image, or for two different numbers of them.
    """
    if len(ours_N) != len(reference_N) or not len(ours_N):
        raise ValueError(f"{len(ours_N)} scores against {len(reference_N)}: they must be the same images")
    off = ours_N.astype(np.float64) - reference_N
    kept = {name: (ours_N >= np.float32(cut), reference_N >= np.float32(cut)) for name, cut in cuts.items()}
    return Deviation(
        num_images=len(off),
        mean_error=float(np.abs(off).mean()),
        p99_error=float(np.quantile(np.abs(off), 0.99)),
        max_error=float(np.abs(off).max()),
        bias=float(off.mean()),
        reference_std=float(reference_N.std()),
        flips={name: int((ours != theirs).sum()) for name, (ours, theirs) in kept.items()},
        kept={name: int(theirs.sum()) for name, (_, theirs) in kept.items()},
    )
