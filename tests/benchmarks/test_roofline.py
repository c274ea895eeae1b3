"""The chip's limits: operations counted from shapes, held to what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.limits import gemm
from benchmarks.roofline import (
    VIT_L_14,
    block_gemms,
    full_flops,
    limit_at_own_shapes,
    limits,
    needed_bytes,
    needed_flops,
)
from dali_aesthetic.score.clip import VisionTower
from dali_aesthetic.score.spec import TowerSpec, spec_of

SMALL = TowerSpec(
    name="small", image_size=64, patch_size=16, width=64, layers=3, heads=2, mlp_width=256, embed_dim=32,
    quick_gelu=True,
)  # fmt: skip


def test_the_operations_are_those_that_torch_counts() -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        VisionTower(SMALL).eval()(torch.zeros(1, 3, SMALL.image_size, SMALL.image_size))
    counted = counter.get_total_flops()
    assert needed_flops(SMALL) <= counted * 1.001
    assert counted <= full_flops(SMALL) * 1.001


def test_the_ladders_tower_is_the_one_of_its_name() -> None:
    assert spec_of("ViT-L-14-quickgelu") == VIT_L_14
    assert full_flops(VIT_L_14) == pytest.approx(162e9, rel=0.01)


def test_shapes_of_a_block() -> None:
    shapes = {shape.name: (shape.m, shape.n, shape.k) for shape in block_gemms(VIT_L_14)}
    assert shapes == {
        "qkv": (257, 3072, 1024),
        "proj": (257, 1024, 1024),
        "fc1": (257, 4096, 1024),
        "fc2": (257, 1024, 4096),
    }


def test_limits_divide_rates_by_what_an_image_needs() -> None:
    found = limits(VIT_L_14, 600.0, 3000.0, "fp16")
    assert found["compute"] == pytest.approx(600e12 / needed_flops(VIT_L_14))
    assert found["memory"] == pytest.approx(3000e9 / needed_bytes(VIT_L_14, "fp16"))
    assert needed_bytes(VIT_L_14, "fp8") < needed_bytes(VIT_L_14, "fp16") < needed_bytes(VIT_L_14, "fp32")
    at_one_speed = limit_at_own_shapes(VIT_L_14, dict.fromkeys(("qkv", "proj", "fc1", "fc2"), 600.0))
    assert at_one_speed > found["compute"]  # attention and patches are left out of it


def test_a_product_has_the_shape_that_was_asked_for() -> None:
    product = gemm(5, 7, 3, "fp32", torch.device("cpu"))()
    assert isinstance(product, torch.Tensor)
    assert product.shape == (5, 7)
