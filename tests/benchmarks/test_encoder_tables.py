"""The encoders beside each other, with the ladder's errors; without them the ladder itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.results import Result, read_result
from benchmarks.tables import blocks
from tests.benchmarks import made_up

ENCODERS = [
    made_up.row("open_clip eager fp16", 2000.0, limit=4000.0, precision="fp16"),
    made_up.row("fused fp8", 6000.0, limit=8000.0, precision="fp8", gpu={"watts": 699.0, "sm_mhz": 1305.0}),
    made_up.row("fused fp16", 3600.0, limit=4000.0, precision="fp16"),
    made_up.row("head alone", 7e6),
]


def encoders(folder: Path, date: str = "2026-01-01") -> Result:
    return made_up.result(folder, "encoders", ENCODERS, date=date)


def ladder(folder: Path, *more: str) -> Result:
    rows = [{"name": name, "images_per_second": 1000.0} for name in ("fused fp16", "fused fp8", *more)]
    error = {"name": "fused fp8", "mean": 0.0142, "p99": 0.0472}
    content = {
        "device": "NVIDIA H100 80GB HBM3, driver 1, torch 2",
        "ladder": rows,
        "errors": [{**error, "weights": "random"}, {**error, "weights": "outliers", "mean": 9.0}],
        "matmul_teraflops": {"fp16": 600.0, "fp8": 1200.0},
    }
    path = folder / "encoder_h100_2026-01-01.json"
    path.write_text(json.dumps(content))
    return read_result(path)


def test_encoders_are_shown_slowest_first_with_power_clock_and_the_ladders_errors(tmp_path: Path) -> None:
    text = blocks([encoders(tmp_path), ladder(tmp_path)])["encoders"]
    assert "| fused fp8 | 6,000 | 3.00 | 75% | 699 | 1,305 | 0.0142 / 0.0472 |" in text
    assert "| fused fp16 | 3,600 | 1.80 | 90% |  |  |  |" in text
    assert "| head alone | 7,000,000 |  |  |" in text
    order = [text.index(name) for name in ("| open_clip", "| fused fp16", "| fused fp8", "| head alone")]
    assert order == sorted(order)
    assert "(fp16 4,000, fp8 8,000)" in text
    assert "encoder_h100_2026-01-01.md" in text


@pytest.mark.parametrize(("date", "more"), [("2025-12-31", ()), ("2026-01-02", ("tuned fp16",))])
def test_a_ladder_that_is_newer_or_has_other_ways_stays(
    tmp_path: Path, date: str, more: tuple[str, ...]
) -> None:
    found = blocks([encoders(tmp_path, date), ladder(tmp_path, "fused fp16, LayerNorm passes", *more)])
    assert "| fused fp8 | 1,000 |" in found["encoders"]
    assert "6,000" not in found["encoders"]
    assert "LayerNorm passes" not in found["encoders"], "a step is for the ladder alone"
    assert "LayerNorm passes" in found["ladder"]


def test_a_step_on_the_way_is_not_missed_and_the_ladder_keeps_a_block(tmp_path: Path) -> None:
    found = blocks([encoders(tmp_path), ladder(tmp_path, "fused fp16, LayerNorm passes")])
    assert "| fused fp8 | 6,000 |" in found["encoders"]
    assert "LayerNorm passes" in found["ladder"]
    assert "(../benchmarks/results/encoder_h100_2026-01-01.svg)" in found["ladder"]


def test_encoders_without_a_ladder_have_no_errors(tmp_path: Path) -> None:
    text = blocks([encoders(tmp_path)])["encoders"]
    assert "| fused fp8 | 6,000 | 3.00 | 75% | 699 | 1,305 |  |" in text
    assert "Score error:" not in text
