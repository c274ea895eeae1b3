"""The fused tower with products by cuBLAS: on a CPU with kernels by torch, on a GPU with the kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from dali_aesthetic.score.backends.backend import build_backend
from dali_aesthetic.score.backends.fits import why_not_triton
from dali_aesthetic.score.backends.fused import FusedBackend
from dali_aesthetic.score.clip import VisionTower
from dali_aesthetic.score.head import Head, HeadBank, head_from_state
from dali_aesthetic.score.spec import TowerSpec
from dali_aesthetic.score.weights import random_head_state, random_tower_state
from tests.score.backends import twins

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPEC = replace(twins.SPEC, layers=4)
SHARED_BYTES = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Shared memory of a thread block by compute capability, from the CUDA programming guide."""


def tower(spec: TowerSpec) -> VisionTower:
    """A tower whose norms and biases aren't trivial."""
    state = random_tower_state(spec, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if ".ln_" in name or name.endswith("bias"):
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    return VisionTower.from_state(spec, state)


def heads(spec: TowerSpec) -> HeadBank:
    return HeadBank([Head("h", head_from_state(random_head_state(spec.embed_dim)))], spec.embed_dim)


def pixels(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return smooth.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    twins.install(monkeypatch)


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("images", [1, 7, 16, 33])
def test_scores_equal_the_reference_with_either_gelu(images: int, quick_gelu: bool) -> None:
    spec = replace(SPEC, quick_gelu=quick_gelu)
    batch = pixels(images, 32)
    expected = build_backend("eager", tower(spec), heads(spec), CPU, "fp32", 16)(batch)[0]
    backend = build_backend("triton", tower(spec), heads(spec), CPU, "fp16", 16)
    assert (backend.name, backend.precision, backend.head_names) == ("triton", "fp16", ("h",))
    scores, embeddings = backend(batch)
    assert embeddings.shape == (images, 48)
    assert float((scores - expected).abs().max()) < 0.02
    assert images == 1 or float(expected.std()) > 0.05


@pytest.mark.usefixtures("on_a_cpu")
def test_the_accumulated_biases_are_all_added() -> None:
    """With every product zero the class token is the sum of the biases."""
    state = random_tower_state(SPEC, seed=0)
    for name, tensor in state.items():
        if any(part in name for part in ("qkv.", "proj.weight", "fc1.", "fc2.weight")):
            tensor.zero_()
        if name.endswith(("proj.bias", "fc2.bias")):
            tensor.uniform_(-1, 1, generator=torch.Generator().manual_seed(len(name) + tensor.numel()))
    made = [VisionTower.from_state(SPEC, {name: t.clone() for name, t in state.items()}) for _ in range(2)]
    batch = pixels(4, 32)
    expected = build_backend("eager", made[0], heads(SPEC), CPU, "fp32", 4)(batch)[1]
    found = build_backend("triton", made[1], heads(SPEC), CPU, "fp16", 4)(batch)[1]
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU compiles them itself")
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_its_attention_compiles_for_other_gpus(capability: int) -> None:
    """That of ViT-L/14, which must fit into their shared memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dali_aesthetic.score.backends.kernels.attention import _CLASS_COLUMNS, QUERY_ROWS, _attend

    names = list(_attend.arg_names)
    constants = {"HEADS": 16, "SIZE": 64, "ROWS": QUERY_ROWS, "PATCHES": 256, "COLUMNS": _CLASS_COLUMNS}
    types = {"qkv_class": "*fp16", "out": "*fp16", "out_class": "*fp16", "out_scale": "fp32"}
    types |= {"keys": "tensordesc<fp16[256, 64]>"}
    types |= dict.fromkeys(("queries", "answers"), f"tensordesc<fp16[{QUERY_ROWS}, 64]>")
    signature = {name: types.get(name, "constexpr") for name in names}
    source = ASTSource(_attend, signature, {(names.index(name),): value for name, value in constants.items()})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert 0 < made.metadata.shared <= SHARED_BYTES[capability]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("images", [1, 7, 255, 257])
def test_scores_are_close_to_the_reference_on_a_gpu(images: int, quick_gelu: bool) -> None:
    spec = replace(
        SPEC, image_size=224, patch_size=14, width=1024, heads=16, mlp_width=4096, quick_gelu=quick_gelu
    )
    if reason := why_not_triton(spec, CUDA):
        pytest.skip(reason)
    batch = pixels(images, 224).cuda()
    expected = build_backend("eager", tower(spec), heads(spec), CUDA, "fp32", 64)
    backend = build_backend("triton", tower(spec), heads(spec), CUDA, "fp16", 128)
    assert isinstance(backend, FusedBackend)
    off = backend(batch)[0] - torch.cat([expected(part)[0] for part in torch.split(batch, 64)])
    assert float(off.abs().mean()) < 0.005
