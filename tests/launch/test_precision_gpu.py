"""fp8 end to end on a Hopper GPU: tars in, calibrated, judged, run, resumed with the same scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("triton")

from dali_aesthetic.config import Config
from dali_aesthetic.launch import precision
from dali_aesthetic.launch.run import run
from dali_aesthetic.layout import CALIBRATION
from dali_aesthetic.score.backends import calibrate
from dali_aesthetic.score.backends.fits import why_not_fused
from dali_aesthetic.score.spec import spec_of
from tests.conftest import jpeg, snapshot, write_shard
from tests.launch import float8
from tests.launch.float8 import record, scores

ENCODER = "ViT-L-14-of-3-layers"
ENOUGH = {"calibration_images": 128, "check_images": 192}
OPEN, CLOSED = float8.OPEN | ENOUGH, float8.OPEN | float8.CLOSED | ENOUGH
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def _needs_hopper(tmp_path_factory: pytest.TempPathFactory) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    folder = tmp_path_factory.mktemp("configs")
    float8.add_encoder(ENCODER, folder, embed_dim=768, image_size=224, layers=3, width=1024, patch_size=14)
    if reason := why_not_fused(spec_of(ENCODER), torch.device("cuda"), "fp8"):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three tars of 120 smooth pictures each, one of them broken."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for shard in range(3):
        images = {}
        for number in range(120):
            coarse = rng.integers(0, 256, (rng.integers(2, 12), rng.integers(2, 12), 3), dtype=np.uint8)
            images[f"{shard}{number:03d}"] = jpeg(
                Image.fromarray(coarse).resize((300, 240), Image.Resampling.BICUBIC)
            )
        images[f"{shard}005"] = b"\xff\xd8 no image"
        write_shard(folder / f"{shard:05d}.tar", images)
    return str(folder)


def config(shards: str, output: Path, gate: dict[str, Any], wanted: str = "fp8", batch: int = 96) -> Config:
    decode = {"batch_size": batch}
    return float8.config(shards, output, gate, "cuda", decode, encoder=ENCODER, precision=wanted)


@pytest.mark.parametrize("wanted", ["fp8", "auto"])
def test_a_run_in_fp8_is_resumed_with_its_own_scales(
    shards: str, tmp_path: Path, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    assert run(config(shards, output, OPEN, wanted)).exit_code == 0
    identity = record(output)["identity"]
    assert (identity["backend"], identity["precision"]) == ("fused", "fp8")
    assert len(identity["calibration"]) == 64
    before, first = snapshot(output), scores(output)
    assert CALIBRATION in before
    (output / "stats" / "00001.json").unlink()
    (output / "scores" / "00001.parquet").unlink()
    monkeypatch.setattr(precision, "_calibrate", None)  # whoever calibrates now fails
    result = run(config(shards, output, OPEN, wanted))
    assert (result.exit_code, result.num_skipped) == (0, 2)
    after = snapshot(output)
    assert after.keys() == before.keys()
    assert after[CALIBRATION] == before[CALIBRATION]
    # Other batches decode in other chunks, which may cost a last bit of a pixel.
    np.testing.assert_allclose(scores(output), first, atol=2e-3)


def test_over_a_limit_of_the_gate_a_run_and_its_reruns_are_in_fp16(shards: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(config(shards, output, CLOSED)).exit_code == 0
    found = record(output)
    assert (found["identity"]["backend"], found["identity"]["precision"]) == ("fused", "fp16")
    errors = [trial["mean_error"] for trial in found["gate"]["trials"]]
    assert len(errors) == len(calibrate.LADDER) + 1
    assert 0 < errors[2] < errors[0] < 0.05
    assert run(config(shards, output, CLOSED)).num_skipped == 3


@pytest.mark.parametrize("batch", [1, 7, 255, 257])
def test_any_batch_size_runs(shards: str, tmp_path: Path, batch: int) -> None:
    assert run(config(f"{shards}/00000.tar", tmp_path / "out", OPEN, batch=batch)).exit_code == 0
    assert record(tmp_path / "out")["identity"]["precision"] == "fp8"
