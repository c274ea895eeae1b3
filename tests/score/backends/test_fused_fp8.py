"""float8 from images to scores: calibration, the gate, outliers, the file. The kernels are torch's."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from dali_aesthetic.score.backends import calibrate, fused, fused_fp8
from dali_aesthetic.score.backends.backend import build_backend
from dali_aesthetic.score.backends.calibration import Calibration
from dali_aesthetic.score.clip import Block, VisionTower, normalize
from dali_aesthetic.score.gate import GateLimits
from dali_aesthetic.score.head import Head, HeadBank, head_from_state
from dali_aesthetic.score.weights import random_head_state, random_tower_state
from tests.score.backends import twins

CPU = torch.device("cpu")
SPEC = twins.SPEC
ANY = GateLimits(mean_error=9, p99_error=9, flips=2)
CUTS = {"standard": 5.0, "high": 6.0}
MADE_FOR = {"input": ["a.tar"]}


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    twins.install(monkeypatch)


def tower(change: Mapping[str, Any] = {}) -> VisionTower:
    """Random weights; `change` maps a tensor's name to what is done to it in place."""
    state = random_tower_state(SPEC, seed=0)
    for name, do in change.items():
        do(state[name])
    return VisionTower.from_state(SPEC, state)


def heads(count: int = 1) -> HeadBank:
    return HeadBank(
        [Head(f"h{i}", head_from_state(random_head_state(SPEC.embed_dim, i))) for i in range(count)],
        SPEC.embed_dim,
    )


def photos(count: int, seed: int) -> Tensor:
    """Smooth noise of all brightnesses, uint8 [count, 32, 32, 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")
    return smooth.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def calibrated(
    change: Mapping[str, Any] = {}, limits: GateLimits = ANY, check: Tensor | None = None
) -> Calibration:
    return calibrate.calibrate(
        tower(change),
        heads(),
        CPU,
        photos(64, seed=1),
        photos(96, seed=2) if check is None else check,
        CUTS,
        limits,
        MADE_FOR,
    )


def scores(precision: str, images: Tensor, calibration: Calibration | None = None, **change: Any) -> Tensor:
    backend = build_backend("fused", tower(change), heads(), CPU, precision, 64, calibration)
    return backend(images)[0]


def test_float8_scores_are_near_float16s() -> None:
    calibration = calibrated()
    trial = calibration.choice.trials[0]
    assert calibration.choice.precision == "fp8"
    images = photos(96, seed=2)
    off = (scores("fp8", images, calibration) - scores("fp16", images))[:, 0].abs()
    assert 0 < float(off.mean()) < 0.05
    assert float(off.mean()) == pytest.approx(trial.mean_error, abs=0.003), "the gate and a run differ"
    assert set(trial.flips) == set(CUTS)


def test_the_same_images_give_the_same_file_and_the_file_the_same_scores() -> None:
    first, second = calibrated(), calibrated()
    assert first.to_bytes() == second.to_bytes()
    loaded = Calibration.from_bytes(first.to_bytes())
    assert loaded.to_bytes() == first.to_bytes()
    assert loaded.choice == first.choice
    images = photos(20, seed=5)
    assert torch.equal(scores("fp8", images, loaded), scores("fp8", images, first))


def test_a_choice_with_nan_errors_survives_json() -> None:
    def broken(weight: Tensor) -> None:
        weight[11, 3] = torch.nan

    choice = calibrated({"blocks.1.fc2.weight": broken}).choice
    assert choice.precision == "fp16"
    assert choice.as_dict()["trials"][0]["mean_error"] is None
    again = type(choice).from_dict(json.loads(json.dumps(choice.as_dict(), allow_nan=False)))
    assert again.as_dict() == choice.as_dict()
    assert "mean error nan" in again.describe()
    assert "weights" not in choice.as_dict(), "an older file without them keeps its hash"


@pytest.mark.parametrize("content", [b"", b"no file at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_other_bytes_than_a_calibration_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="no calibration of a run"):
        Calibration.from_bytes(content)


def test_a_calibration_of_another_tower_or_other_heads_is_refused() -> None:
    calibration = calibrated()
    other = VisionTower.from_state(deeper := replace(SPEC, layers=4), random_tower_state(deeper))
    with pytest.raises(ValueError, match="made for another encoder"):
        fused_fp8.build(other, heads(), CPU, 8, calibration)
    with pytest.raises(ValueError, match="other heads"):
        fused_fp8.build(tower(), heads(2), CPU, 8, calibration)


def test_over_the_limits_it_falls_back_to_fp16_and_lists_its_trials() -> None:
    calibration = calibrated(limits=GateLimits(mean_error=1e-6))
    choice = calibration.choice
    assert choice.precision == "fp16"
    tried = [(trial.precision, trial.float16_products) for trial in choice.trials]
    assert tried == [*(("fp8", products) for products in calibrate.LADDER), ("bf16", ())]
    assert "fp16 instead of fp8, which is over its limits (mean error" in choice.describe()
    assert not calibration.statistics
    with pytest.raises(ValueError, match="has no scales"):
        fused_fp8.build(tower(), heads(), CPU, 8, calibration)


def test_bf16_is_taken_where_fp8_is_over_its_limits_and_bf16_is_not() -> None:
    calibration = calibrated(limits=GateLimits(mean_error=0.003, p99_error=9, flips=2))
    choice = calibration.choice
    assert choice.precision == "bf16", choice.describe()
    assert "bf16 instead of fp8, which is over its limits (mean error" in choice.describe()
    assert not calibration.statistics
    again = Calibration.from_bytes(calibration.to_bytes())
    assert again.choice == choice
    images = photos(96, seed=2)
    off = (scores("bf16", images) - scores("fp16", images))[:, 0].abs().mean()
    assert float(off) == pytest.approx(choice.trials[-1].mean_error, abs=0.001), "the gate and a run differ"


def test_products_in_float16_reduce_the_error_and_are_taken_where_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With fewer blocks the rounding of patches hardly affects the class token.
    monkeypatch.setattr(sys.modules[__name__], "SPEC", replace(SPEC, layers=6))
    trials = calibrated(limits=GateLimits(mean_error=1e-6)).choice.trials
    errors = {trial.float16_products: trial.mean_error for trial in trials if trial.precision == "fp8"}
    assert errors["qkv", "proj", "fc2"] < errors["qkv", "proj"] < 0.6 * errors["proj",]
    between = (errors["qkv", "proj"] + min(errors["proj",], errors[()])) / 2
    calibration = calibrated(limits=GateLimits(mean_error=between, p99_error=9, flips=2))
    assert calibration.choice.precision == "fp8"
    assert calibration.choice.float16_products == ("qkv", "proj")
    assert "qkv and proj in fp16" in calibration.choice.describe()
    images = photos(96, seed=2)
    found = (scores("fp8", images, calibration) - scores("fp16", images))[:, 0].abs().mean()
    assert float(found) < between


def scaled(factor: float, *where: Any) -> Any:
    def do(tensor: Tensor) -> None:
        tensor[where] *= factor

    return do


def test_outlier_channels_and_neurons_pass_within_the_range_of_the_scales() -> None:
    """As in trained CLIP: a few channels of the residual stream and of the norms' gains far above others."""
    change = {
        "blocks.0.fc2.bias": lambda bias: bias[5].add_(40),
        "blocks.1.ln_1.weight": scaled(8, 7),
        "blocks.1.ln_2.weight": scaled(8, 9),
        "blocks.1.fc1.weight": scaled(8, 11),
    }
    calibration = calibrated(change, GateLimits(mean_error=0.05, p99_error=0.2, flips=0.1))
    assert calibration.choice.precision == "fp8", calibration.choice.describe()
    images = photos(64, seed=7)
    off = scores("fp8", images, calibration, **change) - scores("fp16", images, **change)
    assert float(off.abs().mean()) < 0.05


def hard_neurons(factor: float) -> dict[str, Any]:
    """In each block a hidden neuron that is `factor` times larger than others, and read by that much less."""
    change: dict[str, Any] = {}
    for block in range(SPEC.layers - 1):
        change |= {
            f"blocks.{block}.fc1.weight": scaled(factor, 11),
            f"blocks.{block}.fc1.bias": scaled(factor, 11),
            f"blocks.{block}.fc2.weight": scaled(1 / factor, slice(None), 11),
        }
    return change


def test_a_neuron_beyond_the_range_of_a_scale_keeps_its_product_in_float16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tower is the same function, but too few e4m3 bits are left to the other neurons."""
    monkeypatch.setattr(sys.modules[__name__], "SPEC", replace(SPEC, layers=6))
    limits = GateLimits(mean_error=0.035, p99_error=0.2, flips=0.1)
    assert calibrated(limits=limits).choice.float16_products == ()
    choice = calibrated(hard_neurons(2e4), limits).choice
    assert choice.float16_products == ("proj", "fc2"), choice.describe()
    assert choice.trials[0].mean_error > 1.5 * choice.trials[-1].mean_error


def test_rare_tokens_absent_from_the_calibration_images_fail_the_gate() -> None:
    """Every third image has a patch that drives a neuron far beyond what the calibration images reached."""
    plain = photos(96, seed=2)
    marked = plain.clone()
    marked[::3, 8:16, 8:16] = 0
    marked[::3, 8:16:2, 8:16:2] = 255
    change = neuron_for(marked[0], torch.cat([plain, photos(64, seed=1)]))
    limits = GateLimits(mean_error=0.05, p99_error=0.2, flips=0.1)
    assert calibrated(change, limits, plain).choice.float16_products == ()
    choice = calibrated(change, limits, marked).choice
    assert "p99 error" in choice.trials[0].failed, choice.describe()


def neuron_for(image: Tensor, others: Tensor) -> dict[str, Any]:
    """A hidden neuron of block 0 that is at 60 for patch 5 of `image`, and below zero for all of `others`."""
    seen: list[Tensor] = []
    plain = tower()
    block = plain.blocks[0]
    assert isinstance(block, Block)
    block.fc1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].flatten(0, 1)))
    for pixels in (image[None], others):
        plain(normalize(pixels, SPEC))
    wanted, rest = seen[0][1 + 5], seen[1]
    direction = wanted - rest.mean(0)
    nearest = (rest @ direction).max()
    strength = 60 / (wanted @ direction - nearest)
    assert 0 < strength < 30
    return {
        "blocks.0.fc1.weight": lambda weight: weight[11].copy_(strength * direction),
        "blocks.0.fc1.bias": lambda bias: bias[11].copy_(-strength * nearest),
    }


def test_fp8_without_a_calibration_names_its_source() -> None:
    with pytest.raises(ValueError, match=r"OUTPUT/calibration.safetensors as model.calibration"):
        build_backend("fused", tower(), heads(), CPU, "fp8", 8)


@pytest.mark.parametrize("images", [1, 7, 16, 33])
def test_the_twins_give_the_scores_of_the_eager_tower(images: int) -> None:
    """The tests above rely on it: in float16 the twins lose nothing."""
    pixels = photos(images, seed=images)
    expected = build_backend("eager", tower(), heads(), CPU, "fp32", 16)(pixels)[0]
    backend = fused.build(tower(), heads(), CPU, "fp16", 16)
    assert float((backend(pixels)[0] - expected).abs().max()) < 0.02
    assert np.isfinite(expected.numpy()).all()
