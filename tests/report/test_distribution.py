"""Grid and counts: at every edge the slider shows exactly the number of images that a run keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dali_aesthetic.report.distribution import MAX_STEPS, Distribution, Grid, decimal, make_grid
from dali_aesthetic.threshold import PRESETS, Threshold

RANGES = [
    (1.6, 7.4), (4.9991, 5.0007), (-12.7, 23.2), (0.0, 1.0), (5.0, 5.0), (0.0, 0.0), (-3e5, 4e5),
    (1e-7, 2e-7),
]  # fmt: skip


def near_edges(grid: Grid) -> np.ndarray:
    """Every edge, and the float32 right below and right above it."""
    edges = grid.edges_E
    low, high = np.float32(-np.inf), np.float32(np.inf)
    return np.concatenate([edges, np.nextafter(edges, low), np.nextafter(edges, high)])


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_an_edge_is_what_the_shown_decimal_is_read_as(low: float, high: float) -> None:
    grid = make_grid(low, high, [5.123, 4.75])
    assert [Threshold(raw=decimal(edge)).min_raw for edge in grid.edges_E] == grid.edges_E.tolist()


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_edges_rise_cover_the_range_and_are_few(low: float, high: float) -> None:
    grid = make_grid(low, high)
    assert (np.diff(grid.edges_E) > 0).all()
    assert grid.edges_E[0] <= np.float32(low)
    assert grid.edges_E[-1] > np.float32(high)
    assert 50 <= len(grid.edges_E) <= MAX_STEPS + 102
    assert set(grid.bands.tolist()) <= set(grid.bars.tolist()) <= set(grid.edges_E.tolist())


def test_named_cuts_are_edges_unless_nothing_lies_near_them() -> None:
    grid = make_grid(4.0, 6.0, [5.123, 4.75, 99.0])
    assert grid.edges_E[grid.index(5.123)] == np.float32(5.123)
    assert grid.edges_E[grid.index(4.75)] == np.float32(4.75)
    assert grid.edges_E[-1] < 7


def test_an_infinite_score_makes_no_endless_grid() -> None:
    grid = make_grid(-math.inf, math.inf)
    distribution = Distribution(grid)
    distribution.add(np.array([-np.inf, 5, np.inf], np.float32))
    assert distribution.at_least()[grid.index(0.0)] == 2
    assert np.isfinite(grid.edges_E).all()


@pytest.mark.parametrize(("low", "high"), [(1.6, 7.4), (4.9991, 5.0007), (5.0, 5.0), (-3.0, 23.0)])
def test_counts_are_those_of_the_threshold_on_every_edge(low: float, high: float) -> None:
    grid = make_grid(low, high, [5.123, *(preset.raw for preset in PRESETS.values())])
    rng = np.random.default_rng(1)
    scores = np.concatenate(
        [near_edges(grid), rng.uniform(low, high, 500).astype(np.float32), np.full(7, np.nan, np.float32)]
    )
    distribution = Distribution(grid)
    for part in np.array_split(scores, 5):
        distribution.add(part)
    kept = [int(Threshold(raw=decimal(edge)).keep(scores).sum()) for edge in grid.edges_E]
    assert distribution.at_least().tolist() == kept
    above = [int((scores > edge).sum()) for edge in grid.edges_E]
    assert distribution.above().tolist() == above
    assert distribution.total == len(scores) - 7


def test_a_cut_off_the_grid_is_told_only_where_it_is_known() -> None:
    distribution = Distribution(make_grid(4.0, 6.0, [5.123]))
    distribution.add(np.array([4.0, 5.123, 6.0], np.float32))
    assert [distribution.kept_at(cut) for cut in (-1.0, 4.0, 5.123, 6.0, 100.0)] == [3, 3, 2, 1, 0]
    assert distribution.kept_at(5.1234567) is None


def test_bars_hold_every_score_once() -> None:
    scores = np.random.default_rng(0).normal(5, 1, 3000).astype(np.float32)
    grid = make_grid(float(scores.min()), float(scores.max()))
    distribution = Distribution(grid)
    distribution.add(scores)
    expected, _ = np.histogram(scores, grid.bars)
    assert distribution.between(grid.bars) == expected.tolist()
    assert sum(distribution.between(grid.bands)) == 3000


def test_quantiles_are_at_most_a_step_below_the_exact_ones() -> None:
    scores = np.random.default_rng(3).normal(5, 0.8, 4001).astype(np.float32)
    grid = make_grid(float(scores.min()), float(scores.max()))
    distribution = Distribution(grid)
    distribution.add(scores)
    for share, edge in distribution.quantiles():
        exact = float(np.quantile(scores, share, method="higher"))
        assert -1e-6 <= exact - edge <= grid.step + 1e-6, share
        assert (scores >= np.float32(edge)).sum() >= (1 - share) * len(scores)


def test_mean_and_extremes_are_exact() -> None:
    distribution = Distribution(make_grid(1.0, 9.0))
    distribution.add(np.array([1, np.nan, 9, 2], np.float32))
    distribution.add(np.array([], np.float32))
    assert (distribution.low, distribution.high, distribution.mean) == (1.0, 9.0, 4.0)


def test_without_scores_there_are_no_quantiles() -> None:
    distribution = Distribution(make_grid(0.0, 10.0))
    distribution.add(np.full(3, np.nan, np.float32))
    assert distribution.total == 0
    assert distribution.quantiles() == []
    assert math.isnan(distribution.mean)
