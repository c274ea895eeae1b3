"""The gate before a lower precision: score errors and changed decisions against those of float16.

A precision passes on the user's own images or is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dali_aesthetic.score.backends.calibration import Trial

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """Absolute differences of raw scores over `num_images`, and decisions that change.

    `flips` and `kept` are numbers of images by the name of the cut: those that only one of the two keeps,
    and those that the reference keeps. Errors are NaN where a score is.
    """

    num_images: int
    mean_error: float
    p99_error: float
    max_error: float
    bias: float
    reference_std: float
    flips: Mapping[str, int]
    kept: Mapping[str, int]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits:
    """Limits of score errors, on the head's own scale, and of the share of decisions changed at a cut.

    Errors may be as large as their limits; flips must be fewer than theirs.
    """

    mean_error: float = 0.02
    p99_error: float = 0.08
    flips: float = 0.01

    def exceeded_by(self, found: Deviation) -> str:
        """The exceeded limits in words; empty where `found` passes. NaN never passes."""
        over = []
        if not found.mean_error <= self.mean_error:
            over.append(f"mean error {found.mean_error:.4f}, limit {self.mean_error:g}")
        if not found.p99_error <= self.p99_error:
            over.append(f"p99 error {found.p99_error:.4f}, limit {self.p99_error:g}")
        for name, count in found.flips.items():
            if not count / found.num_images < self.flips:
                share = 100 * count / found.num_images
                over.append(f"{share:.2g}% of decisions at {name} changed, limit {100 * self.flips:g}%")
        return "; ".join(over)


Candidate = tuple[str, tuple[str, ...], Callable[[], Scores]]
"""Precision, products that stay in float16, and a function that scores with them, called only if needed."""


def try_in_turn(
    reference_N: Scores, candidates: Iterable[Candidate], cuts: Mapping[str, float], limits: GateLimits
) -> tuple[Trial, ...]:
    """Tries the candidates until one passes: it is the last of the trials, and its `failed` is empty."""
    trials: list[Trial] = []
    for precision, products, scores in candidates:
        found = deviation(scores(), reference_N, cuts)
        trial = Trial(
            precision=precision,
            float16_products=products,
            mean_error=found.mean_error,
            p99_error=found.p99_error,
            max_error=found.max_error,
            flips={name: count / found.num_images for name, count in found.flips.items()},
            failed=limits.exceeded_by(found),
        )
        trials.append(trial)
        if not trial.failed:
            break
    return tuple(trials)
