"""A shard is named where it differs by more than chance and the crowd's own spread explain."""

from __future__ import annotations

import math

import numpy as np

from dali_aesthetic.report.survey import FEWEST_SHARDS, ShardFigures, find_outliers


def shard(name: str, mean: float = 5.0, kept: int = 500, bad: int = 10, size: int = 1000) -> ShardFigures:
    return ShardFigures(
        name=name, source="", num_samples=size, num_scored=size - bad, num_kept=min(kept, size - bad),
        mean=mean if size > bad else math.nan, spread=0.8,
    )  # fmt: skip


def crowd(number: int = 30) -> list[ShardFigures]:
    rng = np.random.default_rng(0)
    return [
        shard(f"{i}", 5 + rng.normal(0, 0.03), int(500 + rng.normal(0, 15)), int(rng.poisson(10)))
        for i in range(number)
    ]


def test_a_crowd_of_equals_has_none() -> None:
    assert find_outliers(crowd()) == []


def test_each_kind_is_found_and_the_oddest_comes_first() -> None:
    odd = [shard("high", mean=6.0), shard("greedy", kept=900), shard("rotten", bad=400, kept=250)]
    found = {outlier.shard.name: outlier.what for outlier in find_outliers([*crowd(), *odd])}
    assert found["high"] == "mean score"
    assert found["greedy"] == "keep rate"
    assert found["rotten"] == "bad share"
    sizes = [abs(outlier.sigmas) for outlier in find_outliers([*crowd(), *odd])]
    assert sizes == sorted(sizes, reverse=True)


def test_a_small_shard_may_differ_by_chance() -> None:
    small = ShardFigures(name="s", source="", num_samples=4, num_scored=4, num_kept=4, mean=5.6, spread=0.8)
    assert find_outliers([*crowd(), small]) == []


def test_one_bad_sample_among_clean_shards_is_no_news() -> None:
    clean = [shard(f"{i}", bad=0) for i in range(10)]
    assert find_outliers([*clean, shard("one", bad=1)]) == []


def test_few_shards_are_no_crowd() -> None:
    few = [shard(f"{i}") for i in range(FEWEST_SHARDS - 2)]
    assert find_outliers([*few, shard("odd", mean=9.0)]) == []


def test_shards_without_any_score_are_judged_by_what_they_have() -> None:
    lost = shard("lost", bad=1000)
    assert [(o.shard.name, o.what) for o in find_outliers([*crowd(), lost])] == [("lost", "bad share")]
    assert find_outliers([lost] * 6) == []


def test_at_most_so_many() -> None:
    assert len(find_outliers([*crowd(60), *(shard(f"odd{i}", mean=7.0 + i) for i in range(9))], most=4)) == 4
