"""Score errors on the demo's photos: measured as `verify` does, committed within the gate, in the README."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.precision import measure_precision
from benchmarks.results import Measured, newest, read_results
from benchmarks.tables import blocks
from dali_aesthetic.config import Config, ModelConfig
from tests.benchmarks import made_up
from tests.conftest import REPOSITORY

COMMITTED = REPOSITORY / "benchmarks" / "results"


@pytest.fixture
def config(shards_dir: Path, tiny_model: ModelConfig) -> Config:
    return Config(input=(str(shards_dir / "00000.tar"),), output="unused", device="cpu", model=tiny_model)


def test_a_row_is_what_verify_says(config: Config) -> None:
    row = measure_precision(config, 5)
    assert isinstance(row, Measured)
    assert row.name == f"{config.model.encoder}, eager fp32"
    assert row.detail["num_images"] == 5
    (mean,) = row.values
    assert 0 < mean <= row.detail["p99_error"] <= row.detail["max_error"] < 0.02
    assert [cut["flipped"] for cut in row.detail["flips"]] == [0] * len(row.detail["flips"])


def test_a_precision_that_the_device_lacks_is_a_reason(config: Config) -> None:
    half = config.model.model_copy(update={"precision": "fp16"})
    assert "fp16" in str(measure_precision(config.model_copy(update={"model": half}), 5))


def test_every_committed_path_keeps_the_references_scores() -> None:
    found = newest(read_results(COMMITTED), "precision")
    assert "cpu" in found
    for result in found.values():
        for row in result.rows:
            exact = row.name.endswith(("fp32", "fp16"))
            assert row.median <= (0.005 if exact else 0.05), row
            assert row.detail["p99_error"] <= (0.02 if exact else 0.15), row
            assert row.detail["reference_std"] > 10 * row.median, row


def test_the_readmes_table_counts_changed_decisions(tmp_path: Path) -> None:
    flips = [{"preset": "high", "flipped": 2}, {"preset": "premium", "flipped": 1}]
    detail = {"p99_error": 0.02, "max_error": 0.03, "num_images": 50, "flips": flips}
    results = [
        made_up.result(tmp_path, "precision", [made_up.row("a fp32", 0.004, **detail)], slug="cpu"),
        made_up.result(tmp_path, "precision", [made_up.row("b fp16", 0.001, **detail)]),
    ]
    text = blocks(results)["precision"]
    assert "| a fp32 | CPU | 50 | 0.00400 | 0.02000 | 0.03000 | 3 of 50 x 2 cuts |" in text
    assert "| b fp16 | H100 80GB HBM3 | 50 | 0.00100 |" in text
