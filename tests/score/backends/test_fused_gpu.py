"""The fused backends on a Hopper GPU with QuACK, against the eager tower in float32."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from dali_aesthetic.score.backends import calibrate, fused, fused_fp8
from dali_aesthetic.score.backends.calibration import Calibration
from dali_aesthetic.score.backends.fits import why_not_fused
from dali_aesthetic.score.backends.kernels import gemm
from dali_aesthetic.score.backends.kernels.gemm import Gemm
from dali_aesthetic.score.clip import VisionTower, normalize
from dali_aesthetic.score.gate import GateLimits
from dali_aesthetic.score.head import Head, HeadBank, head_from_state
from dali_aesthetic.score.spec import TowerSpec
from dali_aesthetic.score.weights import random_head_state, random_tower_state

DEVICE = torch.device("cuda")
SPEC = TowerSpec(
    name="L-14 of 3 layers", image_size=224, patch_size=14, width=1024, layers=3, heads=16, mlp_width=4096,
    embed_dim=768, quick_gelu=True,
)  # fmt: skip
BATCHES = [1, 7, 255, 256, 257, 1019]
REASON = why_not_fused(SPEC, DEVICE, "fp16") if torch.cuda.is_available() else "there is no GPU"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=REASON)]


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


@pytest.mark.parametrize("images", BATCHES)
def test_fused_scores_equal_the_reference(backend: fused.FusedBackend, images: int) -> None:
    batch = pixels(images, seed=images)
    scores, embeddings = backend(batch)
    assert scores.shape == (images, 1)
    assert embeddings.shape == (images, 768)
    assert float((scores - expected_scores(batch)).abs().mean()) < 0.005


def test_bf16_scores_are_near_the_reference() -> None:
    batch = pixels(256, seed=4)
    found = fused.build(tower(), heads(), DEVICE, "bf16", 256)(batch)[0]
    assert float((found - expected_scores(batch)).abs().mean()) < 0.005, "its class tokens are float16"


def test_scores_repeat_bit_for_bit(backend: fused.FusedBackend) -> None:
    batch = pixels(256)
    first = backend(batch)[0]
    backend(pixels(256, seed=1))
    assert all(torch.equal(backend(batch)[0], first) for _ in range(3))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrated(GateLimits(mean_error=9, p99_error=9, flips=2))


def calibrated(limits: GateLimits) -> Calibration:
    images = pixels(512, seed=9), pixels(256, seed=10)
    return calibrate.calibrate(tower(), heads(), DEVICE, *images, {"standard": 5.0}, limits, {})


@pytest.fixture(scope="module")
def float8(calibration: Calibration) -> fused.FusedBackend:
    return fused_fp8.build(tower(), heads(), DEVICE, 256, calibration)


@pytest.mark.parametrize("images", BATCHES)
def test_float8_scores_are_near_the_reference(float8: fused.FusedBackend, images: int) -> None:
    batch = pixels(images, seed=images)
    off = (float8(batch)[0] - expected_scores(batch)).abs()
    assert off.shape == (images, 1)
    assert float(off.mean()) < (0.02 if images > 7 else 0.06)


def test_float8_repeats_bit_for_bit_also_from_its_file(
    float8: fused.FusedBackend, calibration: Calibration
) -> None:
    batch, other = pixels(256), pixels(256, seed=1)
    first = float8(batch)[0]
    for _ in range(5):
        float8(other)
        assert torch.equal(float8(batch)[0], first)
    loaded = Calibration.from_bytes(calibration.to_bytes())
    again = fused_fp8.build(tower(), heads(), DEVICE, 256, loaded)
    assert torch.equal(again(batch)[0], first)


def test_every_step_of_the_gates_ladder_runs_and_brings_the_scores_nearer() -> None:
    choice = calibrated(GateLimits(mean_error=0)).choice
    assert choice.precision == "fp16"
    errors = [trial.mean_error for trial in choice.trials]
    assert [trial.precision for trial in choice.trials] == ["fp8"] * len(calibrate.LADDER) + ["bf16"]
    assert errors[-1] < 0.005
    assert errors[2] < errors[0]
    assert errors[0] < 0.02


@pytest.mark.parametrize("products", calibrate.LADDER[1:])
def test_products_left_in_float16_run_at_odd_batches(
    calibration: Calibration, products: tuple[str, ...]
) -> None:
    choice = dataclasses.replace(calibration.choice, float16_products=products)
    mixed = dataclasses.replace(calibration, choice=choice)
    backend = fused_fp8.build(tower(), heads(), DEVICE, 64, mixed)
    for images in (7, 64, 65):
        batch = pixels(images, seed=images)
        assert float((backend(batch)[0] - expected_scores(batch)).abs().mean()) < 0.06


def test_quack_still_has_the_attribute_for_fast_accumulation() -> None:
    gemm.import_epilogues()
    from cutlass import Float8E4M3FN, Float32
    from quack.gemm_sm90 import GemmSm90

    kernel = GemmSm90(Float32, Float8E4M3FN, (128, 256), (2, 1, 1))
    assert [getattr(kernel, name, None) for name, _ in gemm._FAST_ACCUMULATION] == [True]


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("images", BATCHES)
@pytest.mark.parametrize("channels", [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)])
def test_products_write_every_element_and_repeat(
    images: int, channels: tuple[int, int], outliers: bool
) -> None:
    """Every pinned tile, at the rows of odd batches (a class token makes 257 of an image)."""
    out_channels, in_channels = channels
    rows, residual = images * 257, out_channels == 1024
    generator = torch.Generator(DEVICE).manual_seed(images)
    x = torch.randn(rows, in_channels, generator=generator, device=DEVICE)
    if outliers:
        x[:, ::61] *= 30
        x[::97] *= 5
    x = x.half()
    c = torch.randn(rows, out_channels, generator=generator, device=DEVICE).half()
    weight = (torch.randn(*channels, generator=generator, device=DEVICE) / in_channels**0.5).half()
    bias = torch.randn(out_channels, generator=generator, device=DEVICE)
    product = Gemm("linear_residual" if residual else "linear_quick_gelu", weight, b=bias)
    results = []
    for _ in range(3):
        results.append(c.clone() if residual else torch.full_like(c, float("nan")))
        product(x, results[-1], results[-1] if residual else None)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    for start in range(0, rows, 32768):
        part = slice(start, start + 32768)
        z = x[part].float() @ weight.float().T + bias
        expected = z + c[part].float() if residual else z * torch.sigmoid(1.702 * z)
        assert float((results[0][part].float() - expected).norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("images", BATCHES)
@pytest.mark.parametrize("channels", [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)])
def test_float8_products_write_every_element_and_repeat(images: int, channels: tuple[int, int]) -> None:
    out_channels, in_channels = channels
    rows = images * 257
    generator = torch.Generator(DEVICE).manual_seed(images)
    x = (torch.randn(rows, in_channels, generator=generator, device=DEVICE) * 14).to(torch.float8_e4m3fn)
    weight = torch.randn(*channels, generator=generator, device=DEVICE) * 60
    weight = weight.clamp(-448, 448).to(torch.float8_e4m3fn)
    bias = torch.randn(out_channels, generator=generator, device=DEVICE)
    scale = torch.full_like(bias, 1 / (840 * in_channels**0.5))
    product = Gemm("scaled_linear", weight, b=bias, s=scale)
    results = [torch.full((rows, out_channels), float("nan"), device=DEVICE).half() for _ in range(3)]
    for out in results:
        product(x, out)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    for start in range(0, rows, 32768):
        part = slice(start, start + 32768)
        expected = x[part].float() @ weight.float().T * scale + bias
        # Fast accumulation keeps fewer bits than float32.
        assert float((results[0][part].float() - expected).norm() / expected.norm()) < 1e-2


def test_float8_products_saturate() -> None:
    x = torch.full((256, 1024), 16.0, device=DEVICE).to(torch.float8_e4m3fn)
    weight = torch.full((1024, 1024), 16.0, device=DEVICE).to(torch.float8_e4m3fn)
    one = torch.ones(1024, device=DEVICE)
    out = torch.empty(256, 1024, device=DEVICE, dtype=torch.float8_e4m3fn)
    Gemm("scaled_linear_quick_gelu", weight, b=one, s=one, q=1.0)(x, out)
    assert bool((out.float() == 448).all())
