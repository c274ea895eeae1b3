"""Timed work: what is counted and in which unit, and how the steady part of a run is found."""

from __future__ import annotations

import pytest
import torch

from benchmarks.measure import measure_rate, measure_speed

CPU = torch.device("cpu")


def test_a_rate_counts_what_the_work_says_and_not_the_warm_up() -> None:
    calls = []

    def work() -> int:
        calls.append(sum(range(20_000)))
        return 1000

    row = measure_rate("a", work, 3, CPU, detail=lambda: {"calls": len(calls)}).as_row()
    assert row["calls"] == 4
    assert row["repeats"] == 3
    assert 0 < row["min"] <= row["median"] <= row["max"]
    assert row["cores_per_1000_images_s"] == pytest.approx(row["cpu_us_per_image"] / 1000, abs=1e-4)


def test_a_speed_is_the_rate_in_its_unit() -> None:
    one = measure_speed("a", lambda: 10, 1, CPU, unit="GB/s", per_item=0.0)
    assert (one.unit, list(one.values)) == ("GB/s", [0.0])
