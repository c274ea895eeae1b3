"""The gate before a lower precision: its scores on the user's own images against those of float16."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dali_aesthetic.score.deviation import Deviation, Scores, deviation
from dali_aesthetic.score.fast.calibration import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a precision may do: errors on the head's own scale, and the share of decisions changed at a cut.

    The errors may be as large as the limits; the flips must be fewer.
    """

    mean_error: float = 0.02
    p99_error: float = 0.08
    flips: float = 0.01

    def exceeded_by(self, found: Deviation) -> str:
        """The limits that `found` is over, for a person; empty where it passes. NaN never passes."""
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
"""Precision, products that stay in float16, and what makes and scores it: asked where those before failed."""


def try_in_turn(
    reference_N: Scores, candidates: Iterable[Candidate], cuts: Mapping[str, float], limits: Limits
) -> tuple[Trial, ...]:
    """Each candidate in turn until one passes: then it is the last, and its `failed` is empty."""
    trials: list[Trial] = []
    for precision, products, scores in candidates:
        found = deviation(scores(), reference_N, cuts)
        trials.append(_trial(precision, products, found, limits))
        if not trials[-1].failed:
            break
    return tuple(trials)


def _trial(precision: str, products: tuple[str, ...], found: Deviation, limits: Limits) -> Trial:
    return Trial(
        precision=precision,
        float16_products=products,
        mean_error=found.mean_error,
        p99_error=found.p99_error,
        max_error=found.max_error,
        flips={name: count / found.num_images for name, count in found.flips.items()},
        failed=limits.exceeded_by(found),
    )
