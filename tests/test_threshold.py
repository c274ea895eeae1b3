"""The threshold: several spellings of one cut, and errors that suggest the right one."""

from __future__ import annotations

import numpy as np
import pytest

from dali_aesthetic.config import ConfigError
from dali_aesthetic.threshold import PRESETS, Threshold, preset_counts


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
    with pytest.raises(ConfigError, match=r"^unit and preset say"):
        Threshold(unit=0.5, preset="high")


def test_a_raw_score_given_as_unit_suggests_the_raw_flag() -> None:
    with pytest.raises(ConfigError, match=r"did you mean raw 5 \(the same as unit 0.5\)"):
        Threshold(unit=5.0)
    with pytest.raises(ConfigError, match=r"outside 0\.\.1"):
        Threshold(unit=-0.1)


def test_a_wrong_upper_bound_suggests_the_raw_flag_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"max_unit -1 .*, or max_raw for"):
        Threshold(max_unit=-1)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'best' is unknown: choose from permissive, standard"):
        Threshold(preset="best")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39, -1e39])
def test_a_cut_must_be_a_number(value: float) -> None:
    with pytest.raises(ConfigError, match="no float32 number"):
        Threshold(raw=value)


def test_the_comparison_is_in_float32_and_includes_the_cut() -> None:
    cut = Threshold(raw=5.1)
    just = np.float32(5.1)
    scores = np.array([just, np.nextafter(just, np.float32(0)), np.nan, np.inf], np.float32)
    assert cut.keep(scores).tolist() == [True, False, False, True]


def test_the_keep_rate_of_laion_is_given_for_its_own_head_only() -> None:
    assert "25.3%" in Threshold(unit=0.5).describe("laion-v2")
    assert "0.13%" in Threshold(preset="laion-6.25").describe("laion-v2")
    assert "LAION" not in Threshold(unit=0.5).describe("laion-v1")
    assert "LAION" not in Threshold(preset="premium").describe("laion-v2")


def test_a_higher_preset_keeps_a_smaller_share() -> None:
    shares = [p.laion_share for p in sorted(PRESETS.values(), key=lambda p: p.raw) if p.laion_share]
    assert shares == sorted(shares, reverse=True)


def test_an_upper_bound_is_inclusive_and_optional() -> None:
    scores = np.array([4.9, 5.0, 6.0, 7.0, 7.1], np.float32)
    assert Threshold(raw=5.0, max_raw=7.0).keep(scores).tolist() == [False, True, True, True, False]
    assert Threshold(unit=0.5, max_unit=0.6).keep(scores).tolist() == [False, True, True, False, False]
    with pytest.raises(ConfigError, match="nothing could be kept"):
        Threshold(raw=6.0, max_raw=5.0)
    with pytest.raises(ConfigError, match="did you mean max_raw 6"):
        Threshold(unit=0.5, max_unit=6)
    with pytest.raises(ConfigError, match="max_unit and max_raw"):
        Threshold(max_unit=0.9, max_raw=9.0)


@pytest.mark.parametrize(("top", "kept"), [("25%", 25), (0.25, 25), ("1%", 1), ("0.1%", 1), ("100%", 100)])
def test_a_top_share_is_an_exact_quantile(top: object, kept: int) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(100, dtype=np.float32) / 7)
    with_bad = np.concatenate([scores, np.full(40, np.nan, np.float32)])
    assert Threshold(top=top).resolve_top(with_bad).keep(with_bad).sum() == kept


def test_ties_at_the_cut_are_kept_and_an_impossible_share_is_refused() -> None:
    scores = np.array([1, 2, 2, 2, 3], np.float32)
    assert Threshold(top=0.4).resolve_top(scores).keep(scores).sum() == 4
    for nonsense in ("a quarter", "0%", "120%", -0.1):
        with pytest.raises(ConfigError, match="is no share"):
            Threshold(top=nonsense)
    with pytest.raises(ConfigError, match="preset and top"):
        Threshold(top=0.5, preset="high")
    with pytest.raises(ValueError, match="nothing could be scored"):
        Threshold(top=0.5).resolve_top(np.array([np.nan], np.float32))


def test_preset_counts_match_the_presets_as_thresholds() -> None:
    cuts = np.array([preset.raw for preset in PRESETS.values()], np.float32)
    scores = np.concatenate([cuts, np.nextafter(cuts, np.float32(0)), np.array([np.nan, np.inf], np.float32)])
    kept = {name: int(Threshold(preset=name).keep(scores).sum()) for name in PRESETS}
    assert preset_counts(scores) == kept


def test_an_upper_bound_below_the_share_is_refused_when_the_share_is_known() -> None:
    scores = np.array([3, 4, 5, 6], np.float32)
    assert Threshold(top=0.5, max_raw=5.5).resolve_top(scores).keep(scores).tolist() == [
        False,
        False,
        True,
        False,
    ]
    with pytest.raises(ValueError, match=r"upper bound 4 .* is below the threshold 5"):
        Threshold(top=0.5, max_raw=4).resolve_top(scores)


@pytest.mark.parametrize(
    ("given", "head", "warns"),
    [
        ({"raw": 50.0}, "laion-v2", True),
        ({"raw": -3.0}, "laion-v1", True),
        ({"raw": 50.0}, "punsafe", False),
        ({"raw": 6.5}, "laion-v2", False),
        ({"top": 0.1}, "laion-v2", False),
    ],
)
def test_a_cut_beyond_the_scores_of_laions_heads_is_unlikely(
    given: dict[str, float], head: str, warns: bool
) -> None:
    text = Threshold(**given).unlikely(head)
    assert bool(text) is warns
    assert not warns or f"the threshold {given['raw']:g} (raw) is beyond the scores of {head}" in text
