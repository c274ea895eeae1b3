"""The gate's verdicts, on scores made up for it."""

from __future__ import annotations

import numpy as np
import pytest

from dali_aesthetic.score.gate import Limits, deviation, try_in_turn

REFERENCE = np.linspace(3, 7, 1000).astype(np.float32)
CUTS = {"standard": 5.0}


def shifted(by: float) -> np.ndarray:
    return REFERENCE + np.float32(by)


def test_small_errors_pass() -> None:
    assert Limits().exceeded_by(deviation(shifted(0.01), REFERENCE, CUTS)) == ""


@pytest.mark.parametrize(
    ("limits", "by", "named"),
    [
        (Limits(mean_error=0.005), 0.01, "mean error 0.0100, limit 0.005"),
        (Limits(p99_error=0.005), 0.01, "p99 error"),
        (Limits(mean_error=1, p99_error=1), 0.1, "of decisions at standard changed, limit 1%"),
    ],
)
def test_what_is_over_a_limit_is_named(limits: Limits, by: float, named: str) -> None:
    assert named in limits.exceeded_by(deviation(shifted(by), REFERENCE, CUTS))


def test_one_rare_large_error_is_seen_at_p99() -> None:
    ours = REFERENCE.copy()
    ours[::50] += 0.5
    assert "p99" in Limits().exceeded_by(deviation(ours, REFERENCE, {}))


def test_a_score_that_is_none_never_passes() -> None:
    ours = REFERENCE.copy()
    ours[7] = np.nan
    assert Limits(mean_error=9, p99_error=9, flips=2).exceeded_by(deviation(ours, REFERENCE, CUTS))


def test_flips_must_be_fewer_than_their_limit() -> None:
    found = deviation(np.array([4.9, 6.0], np.float32), np.array([5.1, 6.0], np.float32), CUTS)
    assert "50%" in Limits(mean_error=1, p99_error=1, flips=0.5).exceeded_by(found)
    assert Limits(mean_error=1, p99_error=1, flips=0.51).exceeded_by(found) == ""


def test_the_first_that_passes_ends_the_trials() -> None:
    asked: list[float] = []

    def scores(by: float) -> np.ndarray:
        asked.append(by)
        return shifted(by)

    candidates = [
        ("fp8", (), lambda: scores(0.3)),
        ("fp8", ("proj",), lambda: scores(0.001)),
        ("bf16", (), lambda: scores(0)),
    ]
    trials = try_in_turn(REFERENCE, candidates, CUTS, Limits())
    assert asked == [0.3, 0.001]
    assert [bool(trial.failed) for trial in trials] == [True, False]
    assert (trials[1].precision, trials[1].float16_products) == ("fp8", ("proj",))
    assert trials[0].flips["standard"] == pytest.approx(0.075, abs=0.002)
