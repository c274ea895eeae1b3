"""What a benchmark says of the gate that it opened."""

from __future__ import annotations

import math

import pytest

from benchmarks.open_gate import _verdict
from dali_aesthetic.score.backends.calibration import Trial


def trial(mean: float = 0.005, p99: float = 0.02, flips: float = 0.004) -> Trial:
    return Trial(
        float16_products=(), mean_error=mean, p99_error=p99, max_error=p99, failed="",
        flips={"standard": flips / 2, "high": flips},
    )  # fmt: skip


def test_within_the_usual_limits_it_had_passed_anyway() -> None:
    assert _verdict(trial()) == (
        "passed: mean error 0.0050 (limit 0.02), p99 0.0200 (0.08), "
        "0.4% of decisions changed at the worst cut (1%)"
    )


@pytest.mark.parametrize(
    "over", [trial(mean=0.021), trial(p99=0.081), trial(flips=0.01), trial(mean=math.nan)]
)
def test_over_any_limit_it_had_to_be_opened(over: Trial) -> None:
    assert _verdict(over).startswith("opened: ")
