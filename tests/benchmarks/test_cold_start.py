"""A start is timed to its first committed scores, and one that fails is a row with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cold_start
from benchmarks.settings import Settings


def test_starts_are_timed_and_failures_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start, "CPU_WAYS", (("eager", "fp32"), ("warp", "fp32")))
    settings = Settings(
        device="cpu", encoder="ViT-S-32-alt", repeats=1, data=tmp_path / "data", results=tmp_path / "results"
    )
    record = settings.record("cold-start")
    cold_start.measure_cold_start(record, settings)
    content = json.loads(record.path.read_text())
    assert [row["name"] for row in content["rows"]] == ["eager fp32, cold", "eager fp32, warm"]
    assert all(0.5 < row["median"] < 120 and row["unit"] == "s" for row in content["rows"])
    for row in content["rows"]:
        pieces = row["pieces"]
        rounded = sum(pieces["start"].values()) + pieces["first"]["commit"]  # each to a millisecond
        assert rounded < row["median"] + 0.005
    assert "warp fp32, cold" in [row["name"] for row in content["skipped"]]
    assert "model.backend: 'warp' does not fit" in content["skipped"][0]["reason"]
