"""Every backend against the eager reference, and how they are chosen."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dali_aesthetic.score.backends import plain
from dali_aesthetic.score.backends.backend import (
    Backend,
    choose_backend,
    default_batch,
    resolve_backend,
    why_not_fused,
)
from dali_aesthetic.score.backends.kernels import gemm
from dali_aesthetic.score.spec import TowerSpec, spec_of

MakeBackend = Callable[..., Backend]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
IDENTITY = {"weights": "0" * 64}


def test_eager_gives_scores_and_embeddings(make_backend: MakeBackend, pixels: Tensor) -> None:
    backend = make_backend("auto")
    assert (backend.name, backend.precision, backend.head_names) == ("eager", "fp32", ("h0", "h1"))
    scores_NH, embeddings_ND = backend(pixels)
    assert (scores_NH.shape, scores_NH.dtype) == ((16, 2), torch.float32)
    assert (embeddings_ND.shape, embeddings_ND.dtype) == ((16, 32), torch.float32)
    assert scores_NH[:, 0].std() > 0.01


def test_a_score_depends_on_its_image_alone(make_backend: MakeBackend, pixels: Tensor) -> None:
    """To the bit, for one batch size: neither on the neighbours in the batch nor on the place in it."""
    backend = make_backend("eager")
    scores_NH, embeddings_ND = backend(pixels)
    for seed in range(3):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(backend(pixels[order])[0], scores_NH[order])
        assert torch.equal(backend(pixels[order])[1], embeddings_ND[order])
    for place in range(16):
        alone = torch.zeros_like(pixels)
        alone[place] = pixels[3]
        assert torch.equal(backend(alone)[0][place], scores_NH[3])


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [7, 32])
def test_a_score_depends_on_its_image_alone_at_full_size(batch_size: int) -> None:
    from dali_aesthetic.score.build import ModelReader, scorer_of

    model = ModelReader(encoder="ViT-B-32", weights="random", heads=["random"], model_dir=None).take()
    scorer = scorer_of(model, device=CPU, batch_size=batch_size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, 224, 224, 3), dtype=torch.uint8, generator=generator)
    order = torch.randperm(batch_size, generator=generator)
    scores_NH, _ = scorer.backend(images)
    assert torch.equal(scorer.backend(images[order])[0], scores_NH[order])


def test_bf16_is_close(make_backend: MakeBackend, pixels: Tensor) -> None:
    expected = make_backend("eager", precision="fp32")(pixels)[0]
    found = make_backend("eager", precision="bf16")(pixels)[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.5, rtol=0)


def test_torchscript_equals_eager(make_backend: MakeBackend, pixels: Tensor) -> None:
    eager, traced = make_backend("eager"), make_backend("torchscript")
    for images in (pixels, pixels.flip(0), pixels[:5]):
        for found, expected in zip(traced(images), eager(images), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("error")
def test_torchscript_says_nothing_of_its_deprecation(make_backend: MakeBackend, tmp_path: Path) -> None:
    backend = make_backend("torchscript")
    assert isinstance(backend, plain.TorchScriptBackend)
    backend.export(tmp_path / "scorer.pt", IDENTITY)
    plain.load(tmp_path / "scorer.pt", backend.spec, backend.head_names, "fp32", IDENTITY, CPU)


def test_torchscript_file_round_trip(make_backend: MakeBackend, pixels: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "scorer.pt"
    backend = make_backend("torchscript")
    assert isinstance(backend, plain.TorchScriptBackend)
    backend.export(path, IDENTITY)
    assert [p.name for p in tmp_path.iterdir()] == ["scorer.pt"]
    loaded = plain.load(path, backend.spec, ("h0", "h1"), "fp32", IDENTITY, CPU)
    assert torch.equal(loaded(pixels)[0], backend(pixels)[0])
    assert loaded.head_names == ("h0", "h1")


def test_torchscript_file_of_something_else_is_refused(
    make_backend: MakeBackend, tiny_spec: TowerSpec, tmp_path: Path
) -> None:
    path = tmp_path / "scorer.pt"
    backend = make_backend("torchscript")
    assert isinstance(backend, plain.TorchScriptBackend)
    backend.export(path, IDENTITY)
    spec, names = backend.spec, backend.head_names
    for wanted, field in (
        ((tiny_spec.with_quick_gelu(True), names, "fp32", IDENTITY), "spec"),
        ((spec, ("h0",), "fp32", IDENTITY), "heads"),
        ((spec, names, "fp16", IDENTITY), "precision is fp32, not fp16"),
        ((spec, names, "fp32", {"weights": "1" * 64}), "identity"),
    ):
        with pytest.raises(ValueError, match=f"holds another scoring module: {field}"):
            plain.load(path, *wanted, CPU)
    path.write_bytes(b"no program")
    with pytest.raises(ValueError, match="is not an exported scoring module"):
        plain.load(path, spec, names, "fp32", IDENTITY, CPU)


def test_auto_and_what_cannot_be() -> None:
    assert resolve_backend("auto", "auto", CPU) == ("eager", "fp32")
    assert resolve_backend("auto", "auto", CUDA) == ("torchscript", "fp16")
    assert default_batch("eager", CPU) == 32
    assert default_batch("torchscript", CUDA) == 512
    assert default_batch("fused", CUDA) == 1019
    with pytest.raises(ValueError, match=r"precision fp16 needs a GPU.*--precision fp32"):
        resolve_backend("auto", "fp16", CPU)
    with pytest.raises(ValueError, match="unknown backend 'warp'; there are auto, eager, torchscript"):
        resolve_backend("warp", "auto", CPU)


@pytest.mark.parametrize("name", ["eager", "torchscript", "compile", "export"])
def test_unknown_precisions_are_refused(make_backend: MakeBackend, name: str) -> None:
    with pytest.raises(ValueError, match=f"backend {name} has no precision 'fp7'"):
        make_backend(name, precision="fp7")


@pytest.mark.parametrize("name", ["eager", "torchscript"])
def test_other_pixels_are_refused(make_backend: MakeBackend, name: str) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 pixels \[N, 32, 32, 3\]"):
        make_backend(name)(torch.zeros(16, 3, 32, 32))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "precision", "atol"),
    [
        ("eager", "fp32", 1e-3),
        ("eager", "fp16", 0.05),
        ("torchscript", "fp16", 0.05),
        ("torchscript", "bf16", 0.5),
    ],
)
def test_gpu_backends(
    make_backend: MakeBackend, pixels: Tensor, name: str, precision: str, atol: float
) -> None:
    expected = make_backend("eager")(pixels)[0]
    backend = make_backend(name, CUDA, precision)
    found = backend(pixels.cuda())[0]
    torch.testing.assert_close(found.cpu(), expected, atol=atol, rtol=0)
    order = torch.randperm(16)
    assert torch.equal(backend(pixels[order].cuda())[0].cpu(), found.cpu()[order])


def test_the_fused_backend_says_why_it_cannot_run_and_auto_goes_on_without_it() -> None:
    spec = spec_of("ViT-L-14-quickgelu")
    assert "Hopper" in why_not_fused(spec, CPU, "fp16")
    assert choose_backend("auto", "auto", CPU, spec) == ("eager", "fp32")
    with pytest.raises(ValueError, match=r"backend fused has no precision 'fp32'; it has auto, fp16, bf16"):
        resolve_backend("fused", "fp32", CPU)
    for name in ("fused", "triton"):
        with pytest.raises(ValueError, match=f"backend {name} needs a GPU; use --backend auto"):
            resolve_backend(name, "auto", CPU)


class FakeGpu:
    """A GPU of some compute capability on a machine with QuACK, Triton and a C compiler."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.lacks()
        patch.setattr(gemm, "refusal_launchers", str)

    def lacks(self, *packages: str) -> None:
        self._patch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else object())

    def is_a(self, major: int, minor: int) -> None:
        self._patch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch)


OPENAI_L_14 = "ViT-L-14-quickgelu"
OTHERS = [
    ((7, 5), "Turing"),
    ((8, 0), "Ampere"),
    ((8, 6), "Ampere"),
    ((8, 9), "Ada"),
    ((10, 0), "Blackwell"),
    ((12, 0), "Blackwell"),
]


@pytest.mark.parametrize("capability", [capability for capability, _ in OTHERS])
def test_gpus_but_hopper_get_the_portable_path(gpu: FakeGpu, capability: tuple[int, int]) -> None:
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
    pytest.importorskip("triton")
    gpu.is_a(9, 0)
    spec = spec_of(OPENAI_L_14)
    assert choose_backend("auto", "auto", CUDA, spec) == ("fused", "fp16")
    assert choose_backend("auto", "bf16", CUDA, spec) == ("fused", "bf16")
    assert choose_backend("auto", "fp8", CUDA, spec) == ("fused", "fp8")
    assert choose_backend("auto", "fp32", CUDA, spec) == ("torchscript", "fp32")
    gpu.lacks("quack")
    with pytest.raises(ValueError, match=r"pip install dali-aesthetic\[hopper\]"):
        resolve_backend("auto", "fp8", CUDA)


def test_a_hopper_gpu_gets_the_triton_kernels_where_the_fused_can_not_run(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
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
    monkeypatch.setattr(gemm, "refusal_launchers", lambda: "no compiler")
    assert why_not_fused(spec, CUDA, "fp16") == "no compiler"
    assert choose_backend("auto", "auto", CUDA, spec) == ("torchscript", "fp16")


def test_triton_finds_a_compiler_by_name_or_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    for there in ("gcc", "clang"):
        monkeypatch.setattr(shutil, "which", lambda name, there=there: there if name == there else None)
        assert gemm.refusal_launchers() == ""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "C compiler (apt install gcc" in gemm.refusal_launchers()
    monkeypatch.setenv("CC", "/opt/bin/cc")
    assert gemm.refusal_launchers() == ""


@pytest.mark.parametrize(
    "encoder", ["ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-336-quickgelu", "ViT-H-14"]
)
def test_encoders_that_the_kernels_cannot_take_run_on_hopper_all_the_same(gpu: FakeGpu, encoder: str) -> None:
    pytest.importorskip("triton")
    gpu.is_a(9, 0)
    spec = spec_of(encoder)
    assert choose_backend("auto", "auto", CUDA, spec) == ("torchscript", "fp16")
    with pytest.raises(ValueError, match="backend fused can't run fp8 here: it"):
        choose_backend("auto", "fp8", CUDA, spec)


def test_a_cpu_refuses_fp8_and_says_what_to_use() -> None:
    with pytest.raises(ValueError, match=r"fp8 can't run here: it needs a Hopper GPU; use --precision fp32"):
        resolve_backend("auto", "fp8", CPU)
