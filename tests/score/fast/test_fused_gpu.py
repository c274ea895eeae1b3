"""The fused backends on a Hopper GPU with QuACK, against the eager tower in float32."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from dali_aesthetic.score.clip import VisionTower, normalize
from dali_aesthetic.score.fast import fused, fused_fp8
from dali_aesthetic.score.fast.kernels import gemm
from dali_aesthetic.score.fast.kernels.gemm import Gemm
from dali_aesthetic.score.head import Head, HeadBank, head_from_state
from dali_aesthetic.score.random_init import random_head_state, random_tower_state
from dali_aesthetic.score.spec import TowerSpec

DEVICE = torch.device("cuda")
SPEC = TowerSpec(
    name="L-14 of 3 layers", image_size=224, patch_size=14, width=1024, layers=3, heads=16, mlp_width=4096,
    embed_dim=768, quick_gelu=True,
)  # fmt: skip
REFUSAL = fused.refusal(SPEC, DEVICE, "fp16") if torch.cuda.is_available() else "there is no GPU"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)]


def tower() -> VisionTower:
    return VisionTower.from_state(SPEC, random_tower_state(SPEC)).to(DEVICE)


def heads() -> HeadBank:
    return HeadBank([Head("random", head_from_state(random_head_state(768)))], 768).to(DEVICE)


def pixels(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    coarse = torch.rand(count, 3, 16, 16, generator=generator, device=DEVICE) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=224, mode="bilinear")
    return smooth.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def expected_scores(images: Tensor) -> Tensor:
    with torch.inference_mode():
        reference, bank = tower(), heads()
        return torch.cat([bank(reference(normalize(part, SPEC))) for part in torch.split(images, 64)])


@pytest.fixture(scope="module")
def backend() -> fused.FusedBackend:
    return fused.build(tower(), heads(), DEVICE, "fp16", 256)


@pytest.mark.parametrize("images", [1, 7, 255, 256, 257])
def test_fused_scores_equal_the_reference(backend: fused.FusedBackend, images: int) -> None:
    batch = pixels(images, seed=images)
    scores, embeddings = backend(batch)
    assert scores.shape == (images, 1)
    assert embeddings.shape == (images, 768)
    assert float((scores - expected_scores(batch)).abs().mean()) < 0.005


def test_a_replayed_graph_repeats_bit_for_bit(backend: fused.FusedBackend) -> None:
    batch = pixels(256)
    first = backend(batch)[0]
    backend(pixels(256, seed=1))
    assert all(torch.equal(backend(batch)[0], first) for _ in range(3))


def test_float8_scores_are_near_the_reference() -> None:
    backend = fused_fp8.build(tower(), heads(), DEVICE, 64, pixels(512, seed=9))
    batch = pixels(256, seed=3)
    assert float((backend(batch)[0] - expected_scores(batch)).abs().mean()) < 0.02


def test_upstream_still_has_the_switch_for_fast_accumulation() -> None:
    assert gemm.fast_accumulation_is_settable()


@pytest.mark.parametrize("rows", [1, 7, 255, 257 * 7])
@pytest.mark.parametrize("residual", [False, True])
def test_products_write_every_element(rows: int, residual: bool) -> None:
    generator = torch.Generator(DEVICE).manual_seed(rows)
    x, c = (torch.randn(rows, 1024, generator=generator, device=DEVICE).half() for _ in range(2))
    weight = torch.randn(1024, 1024, generator=generator, device=DEVICE).half() / 32
    bias = torch.randn(1024, generator=generator, device=DEVICE)
    out = c.clone() if residual else torch.full_like(c, float("nan"))
    Gemm("linear_residual" if residual else "linear_quick_gelu", weight, b=bias)(
        x, out, out if residual else None
    )
    z = x.float() @ weight.float().T + bias
    expected = z + c.float() if residual else z * torch.sigmoid(1.702 * z)
    assert float((out.float() - expected).norm() / expected.norm()) < 1e-3


def test_float8_products_saturate() -> None:
    x = torch.full((256, 1024), 16.0, device=DEVICE).to(torch.float8_e4m3fn)
    weight = torch.full((1024, 1024), 16.0, device=DEVICE).to(torch.float8_e4m3fn)
    one = torch.ones(1024, device=DEVICE)
    out = torch.empty(256, 1024, device=DEVICE, dtype=torch.float8_e4m3fn)
    Gemm("scaled_linear_quick_gelu", weight, b=one, s=one, q=1.0)(x, out)
    assert bool((out.float() == 448).all())


def test_a_tower_it_can_not_run_is_refused_with_the_reason() -> None:
    assert "QuickGELU" in fused.refusal(dataclasses.replace(SPEC, quick_gelu=False), DEVICE, "fp16")
    assert "power of two" in fused.refusal(dataclasses.replace(SPEC, image_size=336), DEVICE, "fp16")
    assert "fp32" in fused.refusal(SPEC, DEVICE, "fp32")
    assert "Hopper" in fused.refusal(SPEC, torch.device("cpu"), "fp16")
