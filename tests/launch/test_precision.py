"""fp8 as the precision of whole runs: calibrated once, recorded, the same for every worker and every rerun.

Kernels are replaced by torch (`tests.score.backends.twins`); the rest is real: tars, DALI, the loop, files.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytest.importorskip("triton")

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.launch import precision
from dali_aesthetic.launch.precision import prepare
from dali_aesthetic.launch.run import run
from dali_aesthetic.launch.worker import build_worker
from dali_aesthetic.layout import CALIBRATION
from dali_aesthetic.score import build
from dali_aesthetic.score.backends import calibrate
from dali_aesthetic.score.backends.calibration import Calibration
from dali_aesthetic.score.clip import VisionTower
from dali_aesthetic.score.published import ResolvedFile
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.write.output import RunMismatch
from tests.conftest import jpeg, snapshot, write_shard
from tests.launch import float8
from tests.launch.float8 import CLOSED, OPEN, record, scores
from tests.score.backends import twins

ENCODER = "tiny-vit-of-16-patches"


@pytest.fixture(scope="module", autouse=True)
def _tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    float8.add_encoder(ENCODER, folder, embed_dim=32, image_size=32, layers=3, width=128, patch_size=8)


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    twins.install(monkeypatch)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, photos: list[Image.Image]) -> str:
    """Two tars of 45 small photos each, one of them broken."""
    folder = tmp_path_factory.mktemp("many")
    small = [photo.resize((80, 64)).rotate(7 * turn) for turn in range(5) for photo in photos]
    for shard in range(2):
        images = {f"{shard}{i:03d}": jpeg(photo) for i, photo in enumerate(small[shard::2][:45])}
        images[f"{shard}005"] = b"\xff\xd8 no image"
        write_shard(folder / f"{shard:05d}.tar", images)
    return str(folder)


def config(shards: str, output: Path, gate: dict[str, Any] = OPEN, **model: Any) -> Config:
    decode = {"batch_size": 16, "num_threads": 1}
    return float8.config(shards, output, gate, "cpu", decode, **{"encoder": ENCODER} | model)


def test_a_run_calibrates_on_its_input_and_records_it(shards: str, tmp_path: Path) -> None:
    assert run(config(shards, tmp_path / "out")).exit_code == 0
    content = (tmp_path / "out" / CALIBRATION).read_bytes()
    choice = Calibration.from_bytes(content).choice
    assert (choice.calibration_images, choice.check_images) == (29, 59), (
        "88 can be decoded: a third, the rest"
    )
    found = record(tmp_path / "out")
    assert found["identity"]["precision"] == "fp8"
    assert found["identity"]["backend"] == "fused"
    assert found["identity"]["calibration"] == hashlib.sha256(content).hexdigest()
    assert found["gate"]["trials"][0]["mean_error"] > 0
    run(config(shards, tmp_path / "plain", backend="eager", precision="fp32"))
    ours, reference = scores(tmp_path / "out"), scores(tmp_path / "plain")
    assert (np.isnan(ours) == np.isnan(reference)).all()
    assert 0 < np.nanmean(abs(ours - reference)) < 0.1


def test_a_rerun_takes_the_same_scales_and_gives_the_same_bytes(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    run(config(shards, output))
    before = snapshot(output)
    (output / "stats" / "00001.json").unlink()
    (output / "scores" / "00001.parquet").unlink()
    monkeypatch.setattr(precision, "_calibrate", None)  # whoever calibrates now fails
    result = run(config(shards, output))
    assert result.num_skipped == 1
    assert snapshot(output) == before


@pytest.mark.parametrize("gate", [OPEN, CLOSED])
def test_a_first_run_reads_its_weights_once(
    shards: str, tmp_path: Path, gate: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    towers: list[VisionTower] = []
    load = build.load_tower

    def counted(*names: Any) -> tuple[VisionTower, ResolvedFile]:
        tower, file = load(*names)
        towers.append(tower)
        return tower, file

    monkeypatch.setattr(build, "load_tower", counted)
    first, second = (config(shards, tmp_path / name, gate, backend="fused") for name in ("first", "second"))
    run(first)
    assert len(towers) == 1, "calibrated and scored with one"
    # Calibrated on one tower, scored with another, as where the first start was a process of its own.
    prepare(second, plan_shards(second.input))
    run(second)
    assert len(towers) == 3
    np.testing.assert_array_equal(scores(tmp_path / "first"), scores(tmp_path / "second"))
    assert record(tmp_path / "first")["identity"] == record(tmp_path / "second")["identity"]


def test_all_workers_of_a_run_score_alike(shards: str, tmp_path: Path) -> None:
    asked = config(shards, tmp_path / "out")
    ready = [prepare(asked, plan_shards(asked.input)) for _ in range(2)]
    assert ready[0] == ready[1]
    assert Config.model_validate(ready[0].model_dump(mode="json")) == ready[0], "it crosses processes as JSON"
    images = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
    found = []
    for settled in ready:
        worker = build_worker(settled)
        found.append(worker.scorer.score_pixels(images))
        worker.decoder.close()
    assert (found[0] == found[1]).all()


def test_over_a_limit_of_the_gate_a_run_falls_back_and_its_reruns_too(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        run(config(shards, output, CLOSED, backend="fused"))
    assert "precision fp16 instead of fp8, which is over its limits (mean error" in caplog.text
    found = record(output)
    assert found["identity"]["precision"] == "fp16"
    assert "calibration" not in found["identity"]
    tried = [(trial["precision"], trial["float16_products"]) for trial in found["gate"]["trials"]]
    assert tried == [*(("fp8", list(products)) for products in calibrate.LADDER), ("bf16", [])]
    monkeypatch.setattr(precision, "_calibrate", None)
    assert run(config(shards, output, CLOSED, backend="fused")).num_skipped == 2
    assert run(config(shards, output, CLOSED, precision="fp16", backend="fused")).num_skipped == 2


def test_a_run_takes_bf16_where_only_fp8_fails_the_gate(
    shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(config(shards, tmp_path / "closed", CLOSED, backend="fused"))
    *fp8, bf16 = (trial["mean_error"] for trial in record(tmp_path / "closed")["gate"]["trials"])
    assert bf16 < min(fp8)
    gate = OPEN | {"max_mean_error": (bf16 + min(fp8)) / 2}
    asked = config(shards, tmp_path / "out", gate, backend="fused")
    with caplog.at_level(logging.WARNING):
        run(asked)
    assert "precision bf16 instead of fp8, which is over its limits (mean error" in caplog.text
    assert record(tmp_path / "out")["identity"]["precision"] == "bf16"
    assert run(asked).num_skipped == 2
    run(config(shards, tmp_path / "other", gate, precision="bf16", backend="fused"))
    np.testing.assert_array_equal(scores(tmp_path / "out"), scores(tmp_path / "other"))


def test_too_few_images_to_calibrate_exclude_fp8(
    shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = config(f"{shards}/00000.tar", tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        settled = prepare(asked, plan_shards(asked.input))
    assert settled.model.precision == "fp16"
    assert "fp8 was not tried, 44 images could be decoded and it takes 48" in caplog.text


def test_calibration_uses_the_configured_number_of_images(shards: str, tmp_path: Path) -> None:
    for (calibration, check), took in (((60, 20), (60, 20)), ((80, 20), (68, 20)), ((16, 60), (16, 60))):
        gate = OPEN | {"calibration_images": calibration, "check_images": check}
        asked = config(shards, tmp_path / f"{calibration}", gate)
        prepare(asked, plan_shards(asked.input))
        choice = Calibration.from_bytes((tmp_path / f"{calibration}" / CALIBRATION).read_bytes()).choice
        assert (choice.calibration_images, choice.check_images) == took


def test_scales_of_other_options_are_replaced_unless_a_run_has_begun(shards: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    asked, other = config(shards, output), config(shards, output, weights="random:2")
    prepare(asked, plan_shards(asked.input))
    first = (output / CALIBRATION).read_bytes()
    prepare(other, plan_shards(other.input))
    assert (output / CALIBRATION).read_bytes() != first
    run(other)
    with pytest.raises(ConfigError, match="made for another run: weights: random:2 there, random:1 now"):
        run(asked)


def test_auto_takes_the_precision_of_the_earlier_start(shards: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(config(shards, output, precision="bf16", backend="fused"))
    with pytest.raises(ConfigError, match="holds a run in bf16 and no calibration"):
        run(config(shards, output))
    auto = config(shards, output, precision="auto", backend="fused")
    assert prepare(auto, plan_shards(auto.input)).model.precision == "bf16"
    assert run(auto).num_skipped == 2
    with pytest.raises(RunMismatch, match="precision"):
        run(config(shards, output, precision="fp16", backend="fused"))


def test_auto_takes_fp8_where_the_gate_passes(shards: str, tmp_path: Path) -> None:
    enough = {"calibration_images": 29, "check_images": 59}
    for gate, took in ((OPEN | enough, "fp8"), (CLOSED | enough, "fp16")):
        asked = config(shards, tmp_path / took, gate, precision="auto", backend="fused")
        assert prepare(asked, plan_shards(asked.input)).model.precision == took
    few = config(shards, tmp_path / "few", OPEN, precision="auto", backend="fused")
    assert prepare(few, plan_shards(few.input)) is few


def test_other_precisions_need_no_calibration(shards: str, tmp_path: Path) -> None:
    for fields in ({"precision": "fp32", "backend": "auto"}, {"precision": "auto", "backend": "eager"}):
        asked = config(shards, tmp_path / "out", **fields)
        assert prepare(asked, []) is asked
    assert not (tmp_path / "out").exists()


def test_scales_of_another_run_can_be_given(shards: str, tmp_path: Path) -> None:
    run(config(shards, tmp_path / "first"))
    shutil.move(tmp_path / "first" / CALIBRATION, tmp_path / "scales")
    run(config(shards, tmp_path / "second", calibration=str(tmp_path / "scales")))
    np.testing.assert_array_equal(scores(tmp_path / "second"), scores(tmp_path / "first"))
    (tmp_path / "scales").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"calibration .*scales: it is no calibration of a run"):
        run(config(shards, tmp_path / "third", calibration=str(tmp_path / "scales")))


def test_scales_of_other_weights_are_refused(shards: str, tmp_path: Path) -> None:
    """Options and shapes are the same: only the content of the head's file tells."""
    head = tmp_path / "head.safetensors"
    save_file({"w": torch.ones(32), "b": torch.tensor([5.0])}, head)
    asked = config(shards, tmp_path / "out", heads=(str(head),))
    prepare(asked, plan_shards(asked.input))
    save_file({"w": -torch.ones(32), "b": torch.tensor([5.0])}, head)
    named = config(shards, tmp_path / "b", heads=(str(head),), calibration=f"{asked.output}/{CALIBRATION}")
    for other in (asked, named):
        with pytest.raises(ConfigError, match=r"the calibration was made with weights random:1, .* not with"):
            run(other)
    (tmp_path / "out" / CALIBRATION).unlink()
    assert run(asked).exit_code == 0
