"""What the page's script gets as data: binned counts, never single scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dali_aesthetic.report.distribution import Distribution
from dali_aesthetic.report.grid import decimal
from dali_aesthetic.report.outliers import Outlier, ShardFigures
from dali_aesthetic.report.survey import Survey
from dali_aesthetic.report.timing import Speed
from dali_aesthetic.threshold import PRESETS, RAW_PER_UNIT

LAION_HEAD = "laion-v2"
MOST_POINTS = 1500


def threshold_data(survey: Survey, heads: Sequence[str]) -> dict[str, Any]:
    """Edges, cumulative counts, bars, presets and groups of the deciding head."""
    first = survey.first
    return {
        "edges": [decimal(edge) for edge in first.grid.edges_E],
        "atLeast": first.at_least().tolist(),
        "above": first.above().tolist(),
        "total": first.total,
        "start": first.grid.index(survey.cut),
        "startUpper": upper_start(survey),
        "cut": decimal(survey.cut),
        "bars": bars(first),
        "presets": preset_rows(first, heads[0]),
        "groups": [
            {
                "name": name,
                "total": one.total,
                "atLeast": one.at_least().tolist(),
                "above": one.above().tolist(),
            }
            for name, one in (survey.groups.distributions() if survey.groups else [])
        ],
    }


def upper_start(survey: Survey) -> int:
    """The edge of the run's own upper bound; the last one, which leaves nothing out, where it had none."""
    grid = survey.first.grid
    last = len(grid.edges_E) - 1
    return last if survey.upper is None or survey.upper >= grid.edges_E[-1] else grid.index(survey.upper)


def bars(distribution: Distribution) -> dict[str, Any]:
    """The histogram: edges (one more than counts) and counts, empty ends cut off."""
    edges = distribution.grid.bars
    counts = distribution.between(edges)
    filled = np.flatnonzero(counts)
    if not len(filled):
        return {"edges": [], "counts": []}
    low, high = int(filled[0]), int(filled[-1]) + 1
    return {"edges": [decimal(edge) for edge in edges[low : high + 1]], "counts": counts[low:high]}


def preset_rows(distribution: Distribution, head: str) -> list[dict[str, Any]]:
    """Every preset in rising order with what it keeps here, and of LAION-2B-en for that head's own scale."""
    rows = []
    for name, preset in sorted(PRESETS.items(), key=lambda one: one[1].raw):
        kept = distribution.kept_at(preset.raw)
        share = kept / distribution.total if kept is not None and distribution.total else None
        laion = preset.laion_share if head == LAION_HEAD else None
        rows.append(
            {
                "name": name,
                "raw": preset.raw,
                "unit": preset.raw / RAW_PER_UNIT,
                "kept": kept,
                "share": share,
                "laion": laion,
            }
        )
    return rows


def shard_points(shards: Sequence[ShardFigures], outliers: Sequence[Outlier]) -> dict[str, Any]:
    """Each shard's mean score in order of name; of very many every n-th, and all the odd ones."""
    every = max(1, math.ceil(len(shards) / MOST_POINTS))
    odd = {outlier.shard.name for outlier in outliers}
    chosen = [
        (i, shard)
        for i, shard in enumerate(shards)
        if not math.isnan(shard.mean) and (i % every == 0 or shard.name in odd)
    ]
    return {
        "every": every,
        "index": [i for i, _ in chosen],
        "name": [shard.name for _, shard in chosen],
        "mean": [round(shard.mean, 4) for _, shard in chosen],
        "keep": [round(shard.keep_rate, 5) for _, shard in chosen],
        "bad": [round(shard.bad_share, 5) for _, shard in chosen],
        "odd": [shard.name in odd for _, shard in chosen],
    }


def speed_points(speed: Speed) -> dict[str, Any]:
    """Images a second by time bin, and what bound each."""
    middles = [(i + 0.5) * speed.bin_seconds for i in range(len(speed.rates))]
    return {
        "seconds": [round(middle, 2) for middle in middles],
        "width": speed.bin_seconds,
        "rate": [round(rate, 2) for rate in speed.rates],
        "bound": speed.bound_by,
    }
