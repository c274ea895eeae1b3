"""The score error of a whole fast path against Pillow and the fp32 tower, on the demo's photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.results import newest, read_results
from dali_aesthetic.cli import app
from dali_aesthetic.config import Config, ConfigError, ModelConfig
from dali_aesthetic.demo import make_demo_set
from dali_aesthetic.score.scorer import Scorer
from dali_aesthetic.verify.precision import verify_precision
from tests.conftest import REPOSITORY

MODEL = ["--encoder", "ViT-B-32", "--weights", "random:0", "--head", "random:0", "--device", "cpu"]
COMMITTED = REPOSITORY / "benchmarks" / "results"


@pytest.mark.slow
def test_the_cpu_path_keeps_the_references_scores_on_the_demo_set(tmp_path: Path) -> None:
    source = make_demo_set(tmp_path / "demo")
    called = ["verify", "--precision", "fp32", "--input", source, "--sample", "30", "--json"]
    done = CliRunner().invoke(app, [*called, *MODEL])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert 25 < report["num_images"] <= 30
    assert report["reference_std"] > 0.05, "photos must differ by far more than the tolerance"
    (shown,) = [row for row in newest(read_results(COMMITTED), "precision")["cpu"].rows if "fp32" in row.name]
    assert report["mean_error"] <= 1.5 * shown.median, "the README shows less"
    assert report["mean_error"] <= 0.005
    assert report["p99_error"] <= 0.02
    assert report["mean_error"] <= report["p99_error"] <= report["max_error"]
    assert sum(cut["flipped"] for cut in report["flips"]) <= 2
    assert [cut["raw"] for cut in report["flips"]] == sorted({cut["raw"] for cut in report["flips"]})


def test_a_wrong_score_is_seen(
    shards_dir: Path, tiny_model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Scorer.score_pixels

    def shifted(self: Scorer, images: torch.Tensor) -> np.ndarray:
        return original(self, images) + np.float32(0.3)

    monkeypatch.setattr(Scorer, "score_pixels", shifted)
    config = Config(input=(str(shards_dir / "00000.tar"),), output="out", device="cpu", model=tiny_model)
    report = verify_precision(config, 5)
    assert report.deviation.num_images == 5
    assert report.deviation.mean_error == pytest.approx(0.3, abs=0.01)
    assert report.deviation.bias == pytest.approx(-0.3, abs=0.01)
    kept = {cut["preset"]: (cut["kept_by_reference"], cut["flipped"]) for cut in report.flips}
    assert any(flipped for _, flipped in kept.values())
    written = report.as_dict()
    assert list(written)[:5] == ["encoder", "head", "device", "backend", "precision"]
    errors = ["num_images", "mean_error", "p99_error", "max_error", "bias", "reference_std"]
    assert list(written)[5:] == [*errors, "flips"]
    assert written["flips"] == report.flips
    assert list(written["flips"][0]) == ["preset", "raw", "kept_by_reference", "flipped"]
    assert (written["bias"], written["device"]) == (report.deviation.bias, "cpu")


def test_without_scorable_images_there_is_an_error(tmp_path: Path, tiny_model: ModelConfig) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    config = Config(input=(str(tmp_path),), output="out", device="cpu", model=tiny_model)
    with pytest.raises(ConfigError, match="could be scored"):
        verify_precision(config, 5)
