"""End-to-end results as cases: a line for each, whichever rows a result has of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cases import cases
from benchmarks.tables import blocks
from tests.benchmarks import made_up

FP8 = {"backend": "fused", "precision": "fp8"}
USUAL = {"backend": "fused", "precision": "fp16"}
ROWS = [
    made_up.row("end to end, 25% kept", 1800.0, limit=2000.0, samples=18_000, **USUAL),
    made_up.row("end to end, 25% kept, steady", 1950.0, limit=2000.0, **USUAL),
    made_up.row("encoder only, same run", 2000.0, **USUAL),
    made_up.row("end to end, 25% kept, fused fp8", 3000.0, limit=4000.0, samples=15_000, **FP8),
    made_up.row("end to end, 25% kept, fused fp8, steady", 3600.0, limit=4000.0, gate="opened: so", **FP8),
    made_up.row("encoder only, fused fp8", 4000.0, gate="opened: so", **FP8),
    made_up.row("end to end, mixed, 512 px", 1000.0, limit=2000.0, samples=5000, **USUAL),
]
UNIFORM = "baseline 4:2:0 only, 512 px"


def test_a_whole_and_a_steady_row_are_one_line_beside_the_encoder(tmp_path: Path) -> None:
    text = blocks([made_up.result(tmp_path, "end-to-end", ROWS)])["throughput"]
    assert f"| {UNIFORM} | fused fp16 | 1,800 | 1,950 | 2,000 | 98% |" in text
    assert f"| {UNIFORM} | fused fp8 | 3,000 | 3,600 | 4,000 | 90% |" in text
    assert "encoder only" not in text
    assert "steady, of the encoder alone" in text
    assert text.count("\n| ") == 3


def test_webmix_comes_first_and_another_model_is_named_with_its_encoder(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        made_up.row("end to end, webmix", 1500.0, limit=2000.0, **USUAL),
        made_up.row("end to end, webmix, fused fp8", 2500.0, limit=4000.0, **FP8),
        made_up.row("end to end, webmix, ViT-B-32 fused fp16", 9000.0, limit=12_000.0, **USUAL),
        made_up.row("end to end, 100% kept", 1700.0, limit=2000.0, **USUAL),
    ]
    found = [(case.name, case.encoder) for case in cases(made_up.result(tmp_path, "end-to-end", rows))]
    assert found == [
        ("webmix", "fused fp16"),
        ("webmix", "fused fp8"),
        ("webmix", "ViT-B-32 fused fp16"),
        (UNIFORM, "fused fp16"),
        (UNIFORM, "fused fp8"),
        ("mixed, 512 px", "fused fp16"),
        (f"{UNIFORM}, 100% kept", "fused fp16"),
    ]


def test_a_case_without_a_steady_row_is_judged_by_its_whole_runs(tmp_path: Path) -> None:
    text = blocks([made_up.result(tmp_path, "end-to-end", ROWS)])["throughput"]
    assert "| mixed, 512 px | fused fp16 | 1,000 |  | 2,000 | 50% |" in text


def test_the_length_of_runs_and_the_cost_of_start_and_end_are_shown(tmp_path: Path) -> None:
    result = made_up.result(tmp_path, "end-to-end", ROWS)
    first, second, third = cases(result)
    assert (first.seconds, second.seconds, third.seconds) == (10.0, 5.0, 5.0)
    assert first.edge_seconds == pytest.approx(10 - 18_000 / 1950)
    assert second.edge_seconds == pytest.approx(5 - 15_000 / 3600)
    assert third.edge_seconds is None
    text = blocks([result])["throughput"]
    assert "had 5,000 to 18,000 images and took 5.0 to 10.0 s" in text
    assert "start and end cost 0.8 s" in text


def test_a_verdict_of_the_gate_is_shown_once(tmp_path: Path) -> None:
    assert blocks([made_up.result(tmp_path, "end-to-end", ROWS)])["throughput"].count("opened: so") == 1
