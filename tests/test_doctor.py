"""The doctor finds what would break a long job, with the fix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dali_aesthetic import doctor
from dali_aesthetic.config import ModelConfig
from dali_aesthetic.doctor import examine
from dali_aesthetic.reach import Finding, Verdict


def findings(model: ModelConfig, output: Path | None = None) -> dict[str, list[Finding]]:
    by_check: dict[str, list[Finding]] = {}
    for finding in examine(model, "cpu", None if output is None else str(output)):
        by_check.setdefault(finding.check, []).append(finding)
    return by_check


def test_a_machine_that_can_run_has_no_failure(tiny_model: ModelConfig, tmp_path: Path) -> None:
    found = findings(tiny_model, tmp_path / "not" / "yet")
    assert not [f for group in found.values() for f in group if f.verdict is Verdict.FAIL]
    assert torch.__version__ in found["torch"][0].detail
    assert "/255 from PIL" in found["dali"][0].detail
    assert "eager, fp32" in found["encoder"][0].detail
    assert len(found["weights"]) == 2
    assert "GB free" in found["output"][0].detail


def test_missing_weights_fail_with_the_command_that_gets_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **options: None)
    missing = findings(ModelConfig(model_dir=tmp_path))["weights"]
    assert [finding.verdict for finding in missing] == [Verdict.FAIL, Verdict.FAIL]
    command = "where there is a network: dali-aesthetic download --encoder ViT-L-14 --weights openai"
    assert missing[0].fix == f"{command} --model-dir {tmp_path}; bring the folder here and pass --model-dir"
    missing = findings(ModelConfig())["weights"]
    assert missing[0].fix == f"{command} --model-dir DIR; bring the folder here and pass --model-dir"


def test_damaged_weights_fail_with_both_hashes(tmp_path: Path) -> None:
    (tmp_path / "sa_0_4_vit_b_32_linear.pth").write_bytes(b"cut off")
    model = ModelConfig(encoder="ViT-B-32", weights="random:0", heads=("laion-v1",), model_dir=tmp_path)
    (_, head) = findings(model)["weights"]
    assert head.verdict is Verdict.FAIL
    assert "expected c7b14cea" in head.detail


def test_a_driver_too_old_for_a_build_names_the_install_line_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OldDriver:
        @staticmethod
        def nvmlInit() -> None:
            return

        @staticmethod
        def nvmlSystemGetDriverVersion() -> str:
            return "535.10"

        @staticmethod
        def nvmlSystemGetCudaDriverVersion() -> int:
            return 12020

    monkeypatch.setitem(__import__("sys").modules, "pynvml", OldDriver)
    monkeypatch.setattr(doctor, "dali_build", lambda: 13)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    driver = list(doctor._driver())
    assert [f.verdict for f in driver] == [Verdict.OK, Verdict.FAIL, Verdict.FAIL]
    assert "torch built for CUDA 12" in driver[1].fix
    uninstall, install = driver[2].fix.split(", then ")
    assert uninstall == "pip uninstall nvidia-dali-cuda120 nvidia-dali-cuda130"
    assert install.startswith("in the clone, pip install '.[cuda12]'")
    assert "580.65" in driver[2].fix


def test_an_output_that_cannot_be_written_fails(tiny_model: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (output,) = findings(tiny_model, tmp_path / "file" / "out")["output"]
    assert output.verdict is Verdict.FAIL


def test_a_check_that_raises_is_a_finding_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, tiny_model: ModelConfig
) -> None:
    def broken(device: torch.device) -> float:
        raise RuntimeError("libnvjpeg.so not found")

    monkeypatch.setattr(doctor, "decode_difference", broken)
    found = findings(tiny_model)
    assert found["decoder"][0].verdict is Verdict.FAIL
    assert "libnvjpeg.so not found" in found["decoder"][0].detail
    assert "weights" in found


def test_pixels_that_differ_from_pil_fail(monkeypatch: pytest.MonkeyPatch, tiny_model: ModelConfig) -> None:
    monkeypatch.setattr(doctor, "decode_difference", lambda device: 3.7)
    assert findings(tiny_model)["dali"][0].verdict is Verdict.FAIL


def test_the_extra_for_hopper_is_asked_for_on_hopper_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise doctor.metadata.PackageNotFoundError(name)

    (there,) = doctor._quack("cpu")
    assert there.verdict is Verdict.OK
    monkeypatch.setattr(doctor.metadata, "version", missing)
    (not_needed,) = doctor._quack("cpu")
    assert not_needed.verdict is Verdict.OK
    monkeypatch.setattr(doctor, "resolve_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda chip: (9, 0))
    (wanted,) = doctor._quack("cuda")
    assert (wanted.verdict, wanted.fix) == (Verdict.WARN, "in the clone, pip install '.[hopper]'")


def test_the_jpeg_engine_counts_as_used_once_it_is_busy() -> None:
    asked = []

    def third_time() -> int:
        asked.append(0)
        return 40 if len(asked) >= 3 else 0

    assert doctor.jpeg_engine_use(torch.device("cpu"), third_time) == 40
    assert doctor.jpeg_engine_use(torch.device("cpu"), lambda: 0, seconds=0.5) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver here")
def test_a_driver_that_does_not_report_its_engines_is_a_warning() -> None:
    engine = doctor._jpeg_engine(torch.device("cuda"))
    assert engine.verdict is Verdict.WARN
    assert "unknown" in engine.detail
    assert "NVIDIA_DRIVER_CAPABILITIES" in engine.fix


def test_an_absent_extra_for_png_and_webp_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._codecs().verdict is Verdict.OK
    monkeypatch.setattr("dali_aesthetic.decode.codecs.imagecodecs", None)
    absent = doctor._codecs()
    assert (absent.verdict, absent.fix) == (Verdict.WARN, "in the clone, pip install '.[codecs]'")


def test_too_few_cores_for_a_mix_from_the_web_are_a_warning() -> None:
    many, few = (doctor._web_mix(cores, "NVIDIA H100 80GB HBM3") for cores in (16, 4))
    assert (many.verdict, few.verdict) == (Verdict.OK, Verdict.WARN)
    assert "bound by decode: CPU cores at about 1,600 images/s" in few.detail


@pytest.mark.gpu
def test_the_jpeg_engine_of_this_gpu_is_used() -> None:
    by_check = {finding.check: finding for finding in doctor._gpu("cuda")}
    engine = by_check["jpeg engine"]
    if "has none" in engine.detail:
        pytest.skip("this GPU has no JPEG engine")
    assert engine.verdict is Verdict.OK, engine
    assert "busy while JPEGs were decoded" in engine.detail
