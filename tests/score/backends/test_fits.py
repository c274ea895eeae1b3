"""The backend and precision that each device and tower get, and the errors for what can't run."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from dali_aesthetic.score.backends import fits
from dali_aesthetic.score.backends.fits import (
    BACKENDS,
    choose_backend,
    default_batch,
    resolve_backend,
    why_no_launcher,
    why_not_fused,
    why_not_triton,
)
from dali_aesthetic.score.spec import TowerSpec, spec_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OPENAI_L_14 = "ViT-L-14-quickgelu"
SPEC = TowerSpec(
    name="tiny", image_size=32, patch_size=8, width=128, layers=4, heads=2, mlp_width=256, embed_dim=48,
    quick_gelu=True,
)  # fmt: skip


class FakeGpu:
    """A GPU of some compute capability on a machine with QuACK, Triton and a C compiler."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.lacks()
        patch.setattr(fits, "why_no_launcher", str)

    def lacks(self, *packages: str) -> None:
        self._patch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else object())

    def is_a(self, major: int, minor: int) -> None:
        self._patch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch)


def test_auto_and_default_batches() -> None:
    assert resolve_backend("auto", "auto", CPU) == ("eager", "fp32")
    assert resolve_backend("auto", "auto", CUDA) == ("torchscript", "fp16")
    assert choose_backend("auto", "auto", CPU, spec_of(OPENAI_L_14)) == ("eager", "fp32")
    assert default_batch("eager", CPU) == 32
    assert default_batch("torchscript", CUDA) == 512
    assert default_batch("fused", CUDA) == 1019


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown backend 'warp'; there are auto, eager, torchscript"):
        resolve_backend("warp", "auto", CPU)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_unknown_precisions_are_refused(name: str, device: torch.device) -> None:
    with pytest.raises(ValueError, match=f"backend {name} has no precision 'fp7'"):
        resolve_backend(name, "fp7", device)


def test_precisions_that_a_backend_does_not_have_are_refused() -> None:
    assert resolve_backend("triton", "auto", CUDA) == ("triton", "fp16")
    with pytest.raises(ValueError, match="backend triton has no precision 'bf16'"):
        resolve_backend("triton", "bf16", CUDA)
    with pytest.raises(ValueError, match=r"backend fused has no precision 'fp32'; it has auto, fp16, bf16"):
        resolve_backend("fused", "fp32", CPU)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("fused", "auto"), ("fused", "fp16"), ("fused", "bf16"), ("fused", "fp8"), ("triton", "auto")],
)
def test_a_backend_for_gpus_is_refused_on_a_cpu(name: str, precision: str) -> None:
    with pytest.raises(
        ValueError, match=rf"backend {name} needs a GPU; use --backend auto \(or eager\) with --device cpu"
    ):
        resolve_backend(name, precision, CPU)


def test_precisions_for_gpus_are_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match=r"precision fp16 needs a GPU.*--precision fp32"):
        resolve_backend("auto", "fp16", CPU)
    with pytest.raises(ValueError, match=r"fp8 can't run here: it needs a Hopper GPU; use --precision fp32"):
        resolve_backend("auto", "fp8", CPU)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (10, 0), (12, 0)])
def test_gpus_other_than_hopper_get_torchscript(gpu: FakeGpu, capability: tuple[int, int]) -> None:
    """Turing, Ampere (twice), Ada and Blackwell (twice)."""
    gpu.is_a(*capability)
    spec = spec_of(OPENAI_L_14)
    assert choose_backend("auto", "auto", CUDA, spec) == ("torchscript", "fp16")
    assert choose_backend("auto", "bf16", CUDA, spec) == ("torchscript", "bf16")
    number = f"{capability[0]}.{capability[1]}"
    with pytest.raises(
        ValueError, match=rf"fp8 can't run here: .*Hopper.*not {number}; use --precision fp16"
    ):
        resolve_backend("auto", "fp8", CUDA)
    with pytest.raises(
        ValueError, match=rf"backend fused can't run fp16 here: .*not {number}; use --backend"
    ):
        choose_backend("fused", "auto", CUDA, spec)


def test_a_hopper_gpu_gets_the_fused_kernels(gpu: FakeGpu) -> None:
    gpu.is_a(9, 0)
    spec = spec_of(OPENAI_L_14)
    assert choose_backend("auto", "auto", CUDA, spec) == ("fused", "fp16")
    assert choose_backend("auto", "bf16", CUDA, spec) == ("fused", "bf16")
    assert choose_backend("auto", "fp8", CUDA, spec) == ("fused", "fp8")
    assert choose_backend("auto", "fp32", CUDA, spec) == ("torchscript", "fp32")
    gpu.lacks("quack")
    with pytest.raises(ValueError, match=r"pip install '\.\[hopper\]"):
        resolve_backend("auto", "fp8", CUDA)


def test_a_hopper_gpu_gets_the_triton_kernels_where_the_fused_ones_can_not_run(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.is_a(9, 0)
    laion = spec_of("ViT-L-14")
    assert not laion.quick_gelu
    assert choose_backend("auto", "auto", CUDA, laion) == ("triton", "fp16")
    assert choose_backend("auto", "bf16", CUDA, laion) == ("torchscript", "bf16")
    gpu.lacks("quack")
    spec = spec_of(OPENAI_L_14)
    assert choose_backend("auto", "auto", CUDA, spec) == ("triton", "fp16")
    gpu.lacks("quack", "triton")
    assert choose_backend("auto", "auto", CUDA, spec) == ("torchscript", "fp16")
    gpu.lacks()
    monkeypatch.setattr(fits, "why_no_launcher", lambda: "no compiler")
    assert why_not_fused(spec, CUDA, "fp16") == "no compiler"
    assert choose_backend("auto", "auto", CUDA, spec) == ("torchscript", "fp16")


@pytest.mark.parametrize(
    "encoder", ["ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-336-quickgelu", "ViT-H-14"]
)
def test_encoders_that_the_kernels_cannot_take_get_torchscript_on_hopper(gpu: FakeGpu, encoder: str) -> None:
    gpu.is_a(9, 0)
    spec = spec_of(encoder)
    assert choose_backend("auto", "auto", CUDA, spec) == ("torchscript", "fp16")
    for name, precision in (("auto", "fp8"), ("fused", "auto")):
        with pytest.raises(ValueError, match=r"backend fused can't run fp(8|16) here: it"):
            choose_backend(name, precision, CUDA, spec)


def test_the_fused_backend_names_the_reason_why_it_cannot_run(gpu: FakeGpu) -> None:
    assert "Hopper" in why_not_fused(SPEC, CPU, "fp16")
    gpu.is_a(9, 0)
    assert why_not_fused(SPEC, CUDA, "fp8") == ""
    assert "fp32" in why_not_fused(SPEC, CUDA, "fp32")
    assert "QuickGELU" in why_not_fused(replace(SPEC, quick_gelu=False), CUDA, "fp16")
    assert "power of two, not 49" in why_not_fused(replace(SPEC, image_size=56), CUDA, "fp16")
    assert "heads of 16, 32, 64 or 128, not 80" in why_not_fused(replace(SPEC, width=160), CUDA, "fp16")
    assert "steps of 64, not 96" in why_not_fused(replace(SPEC, width=96, heads=3), CUDA, "fp16")


def test_the_triton_backend_names_the_reason_why_it_cannot_run(gpu: FakeGpu) -> None:
    assert "NVIDIA GPU" in why_not_triton(SPEC, CPU)
    gpu.is_a(7, 5)
    assert "not 7.5" in why_not_triton(SPEC, CUDA)
    with pytest.raises(ValueError, match=r"backend triton can't run fp16 here: .*not 7\.5; use --backend"):
        choose_backend("triton", "auto", CUDA, SPEC)
    gpu.is_a(8, 9)
    assert why_not_triton(SPEC, CUDA) == ""
    assert choose_backend("triton", "auto", CUDA, SPEC) == ("triton", "fp16")
    assert "power of two" in why_not_triton(replace(SPEC, image_size=56), CUDA)


def test_triton_finds_a_compiler_by_name_or_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    for there in ("gcc", "clang"):
        monkeypatch.setattr(shutil, "which", lambda name, there=there: there if name == there else None)
        assert why_no_launcher() == ""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "C compiler (apt install gcc" in why_no_launcher()
    monkeypatch.setenv("CC", "/opt/bin/cc")
    assert why_no_launcher() == ""


def test_it_is_imported_without_triton_and_quack() -> None:
    script = (
        "import sys\n"
        "sys.modules['triton'] = sys.modules['quack'] = sys.modules['cutlass'] = None\n"
        "import torch\n"
        "from dali_aesthetic.score.backends.backend import choose_backend\n"
        "from dali_aesthetic.score.spec import spec_of\n"
        "print(choose_backend('auto', 'auto', torch.device('cpu'), spec_of('ViT-L-14')))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "('eager', 'fp32')"
