"""The verdict on a gate that was opened, and the steady part of a run."""

from __future__ import annotations

import math

import pytest

from benchmarks.bench import gate_verdict, steady_rate
from dali_aesthetic.score.backends.calibration import Trial


def trial(mean: float = 0.005, p99: float = 0.02, flips: float = 0.004) -> Trial:
    return Trial(
        float16_products=(), mean_error=mean, p99_error=p99, max_error=p99, failed="",
        flips={"standard": flips / 2, "high": flips},
    )  # fmt: skip


def test_within_the_usual_limits_fp8_passed() -> None:
    assert gate_verdict(trial()) == (
        "passed: mean error 0.0050 (limit 0.02), p99 0.0200 (0.08), "
        "0.4% of decisions changed at the worst cut (1%)"
    )


@pytest.mark.parametrize(
    "over", [trial(mean=0.021), trial(p99=0.081), trial(flips=0.01), trial(mean=math.nan)]
)
def test_over_any_limit_the_gate_was_opened(over: Trial) -> None:
    assert gate_verdict(over).startswith("opened: ")


def test_the_steady_part_is_the_middle_of_a_run() -> None:
    start = [(3.0, 100), (3.1, 200)]
    middle = [(4.0 + 0.5 * step, 300 + 100 * step) for step in range(7)]
    assert steady_rate([*start, *middle, (9.0, 1000), (9.5, 1000)]) == pytest.approx(200.0)
    assert steady_rate([(1.0, 10), (2.0, 20)]) is None
    assert steady_rate([]) is None
