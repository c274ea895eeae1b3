"""Score errors, changed decisions, and the verdicts of the gate, on made-up scores."""

from __future__ import annotations

import numpy as np
import pytest

from dali_aesthetic.score.gate import GateLimits, deviation, try_in_turn

REFERENCE = np.linspace(3, 7, 1000).astype(np.float32)
CUTS = {"standard": 5.0}


def shifted(by: float) -> np.ndarray:
    return REFERENCE + np.float32(by)


def test_errors_and_flips_are_counted() -> None:
    reference = np.array([4.0, 4.9, 5.0, 6.5], np.float32)
    ours = np.array([4.0, 5.1, 4.9, 6.4], np.float32)
    found = deviation(ours, reference, {"standard": 5.0, "high": 6.0})
    assert found.num_images == 4
    assert found.mean_error == pytest.approx(0.1, abs=1e-6)
    assert found.max_error == pytest.approx(0.2, abs=1e-6)
    assert found.bias == pytest.approx(0.0, abs=1e-6)
    assert dict(found.flips) == {"standard": 2, "high": 0}
    assert dict(found.kept) == {"standard": 2, "high": 1}


@pytest.mark.parametrize("ours", [[], [1.0, 2.0]])
def test_another_number_of_scores_is_refused(ours: list[float]) -> None:
    reference = np.zeros(len(ours) and 1, np.float32)
    with pytest.raises(ValueError, match="the same images"):
        deviation(np.array(ours, np.float32), reference, {})


def test_small_errors_pass() -> None:
    assert GateLimits().exceeded_by(deviation(shifted(0.01), REFERENCE, CUTS)) == ""


@pytest.mark.parametrize(
    ("limits", "by", "named"),
    [
        (GateLimits(mean_error=0.005), 0.01, "mean error 0.0100, limit 0.005"),
        (GateLimits(p99_error=0.005), 0.01, "p99 error"),
        (GateLimits(mean_error=1, p99_error=1), 0.1, "of decisions at standard changed, limit 1%"),
    ],
)
def test_an_exceeded_limit_is_named(limits: GateLimits, by: float, named: str) -> None:
    assert named in limits.exceeded_by(deviation(shifted(by), REFERENCE, CUTS))


def test_rare_large_errors_are_seen_at_p99() -> None:
    ours = REFERENCE.copy()
    ours[::50] += 0.5
    assert "p99" in GateLimits().exceeded_by(deviation(ours, REFERENCE, {}))


def test_nan_never_passes() -> None:
    ours = REFERENCE.copy()
    ours[7] = np.nan
    assert GateLimits(mean_error=9, p99_error=9, flips=2).exceeded_by(deviation(ours, REFERENCE, CUTS))


def test_flips_must_be_fewer_than_their_limit() -> None:
    found = deviation(np.array([4.9, 6.0], np.float32), np.array([5.1, 6.0], np.float32), CUTS)
    assert "50%" in GateLimits(mean_error=1, p99_error=1, flips=0.5).exceeded_by(found)
    assert GateLimits(mean_error=1, p99_error=1, flips=0.51).exceeded_by(found) == ""


def test_trials_end_with_the_first_candidate_that_passes() -> None:
    asked: list[float] = []

    def scores(by: float) -> np.ndarray:
        asked.append(by)
        return shifted(by)

    candidates = [
        ("fp8", (), lambda: scores(0.3)),
        ("fp8", ("proj",), lambda: scores(0.001)),
        ("bf16", (), lambda: scores(0)),
    ]
    trials = try_in_turn(REFERENCE, candidates, CUTS, GateLimits())
    assert asked == [0.3, 0.001]
    assert [bool(trial.failed) for trial in trials] == [True, False]
    assert (trials[1].precision, trials[1].float16_products) == ("fp8", ("proj",))
    assert trials[0].flips["standard"] == pytest.approx(0.075, abs=0.002)
