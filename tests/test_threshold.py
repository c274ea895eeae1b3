"""One meaning, several spellings, and errors that say what was meant."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from dali_aesthetic.threshold import PRESETS, Threshold


@pytest.mark.parametrize(
    ("spelling", "raw"),
    [
        ({"unit": 0.5}, 5.0),
        ({"raw": 5.5}, 5.5),
        ({"raw": -3.0}, -3.0),
        ({"preset": "permissive"}, 3.0),
        ({"preset": "standard"}, 5.0),
        ({"preset": "high"}, 6.0),
        ({"preset": "premium"}, 7.0),
        ({"preset": "laion-4.75"}, 4.75),
        ({}, 5.0),
    ],
)
def test_every_spelling_resolves_to_a_raw_cut(spelling: dict[str, object], raw: float) -> None:
    assert Threshold(**spelling).min_raw == raw


def test_two_spellings_are_refused() -> None:
    with pytest.raises(ValidationError, match="--threshold and --preset"):
        Threshold(unit=0.5, preset="high")


def test_a_raw_number_given_as_unit_says_what_was_meant() -> None:
    with pytest.raises(
        ValidationError, match=r"did you mean --raw-threshold 5 \(the same as --threshold 0.5\)"
    ):
        Threshold(unit=5.0)
    with pytest.raises(ValidationError, match=r"outside 0\.\.1"):
        Threshold(unit=-0.1)


def test_unknown_presets_are_listed() -> None:
    with pytest.raises(ValidationError, match="'best' is unknown: choose from permissive, standard"):
        Threshold(preset="best")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_cut_must_be_a_number(value: float) -> None:
    with pytest.raises(ValidationError, match="not a number"):
        Threshold(raw=value)


def test_the_comparison_is_in_float32_and_includes_the_cut() -> None:
    cut = Threshold(raw=5.1)
    just = np.float32(5.1)
    scores = np.array([just, np.nextafter(just, np.float32(0)), np.nan, np.inf], np.float32)
    assert cut.keep(scores).tolist() == [True, False, False, True]


def test_the_share_of_laion_is_told_for_its_own_head_only() -> None:
    assert "25.3%" in Threshold(unit=0.5).describe("laion-v2")
    assert "0.13%" in Threshold(preset="laion-6.25").describe("laion-v2")
    assert "LAION" not in Threshold(unit=0.5).describe("laion-v1")
    assert "LAION" not in Threshold(preset="premium").describe("laion-v2")


def test_presets_rise_with_falling_shares() -> None:
    shares = [p.laion_share for p in sorted(PRESETS.values(), key=lambda p: p.raw) if p.laion_share]
    assert shares == sorted(shares, reverse=True)
