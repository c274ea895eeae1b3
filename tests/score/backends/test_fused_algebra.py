"""The fused tower without a Hopper GPU: QuACK's products by torch, Triton's kernels in its interpreter."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")
GPU = torch.cuda.is_available()
if not GPU and os.environ.get("TRITON_INTERPRET") != "1":
    # Torch imports Triton, whose own functions are bound to a GPU or to the interpreter at that moment.
    pytest.skip(
        "without a GPU test_kernels_interpreted.py runs this in a process of its own", allow_module_level=True
    )

from dali_aesthetic.score.backends import calibrate, folding, fused, fused_fp8  # noqa: E402
from dali_aesthetic.score.backends.class_stream import ClassStream  # noqa: E402
from dali_aesthetic.score.backends.workspace import Workspace  # noqa: E402
from dali_aesthetic.score.clip import VisionTower, normalize  # noqa: E402
from dali_aesthetic.score.head import Head, HeadBank, head_from_state  # noqa: E402
from dali_aesthetic.score.spec import TowerSpec  # noqa: E402
from dali_aesthetic.score.weights import random_head_state, random_tower_state  # noqa: E402
from tests.score.backends import twins  # noqa: E402

DEVICE = torch.device("cuda" if GPU else "cpu")
SPEC = TowerSpec(
    name="tiny", image_size=56, patch_size=14, width=64, layers=3, heads=2, mlp_width=128, embed_dim=48,
    quick_gelu=True,
)  # fmt: skip


def tower_of(seed: int, outliers: bool) -> VisionTower:
    """A tiny tower whose norms and biases aren't trivial; with outliers, some of them are large."""
    generator = torch.Generator().manual_seed(seed)
    state = random_tower_state(SPEC, seed)
    for name, tensor in state.items():
        if ".ln_" in name or name.startswith("ln_") or name.endswith("bias"):
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    if outliers:
        state["blocks.0.fc2.bias"][5] += 40
        state["blocks.1.ln_1.weight"][7] *= 8
    return VisionTower.from_state(SPEC, state).to(DEVICE)


def pixels(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 56, 56, 3), dtype=torch.uint8, generator=generator).to(DEVICE)


def folded_blocks(tower: VisionTower) -> list[folding.FoldedBlock]:
    return folding.fold_all_but_the_last(tower)


def cosine_distance(out: Tensor, expected: Tensor) -> float:
    return float((1 - F.cosine_similarity(out.float(), expected.float())).max())


@pytest.fixture(autouse=True)
def _products_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    twins.products(monkeypatch)


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("how", ["passes", "deferred", "deferred, class tokens apart"])
def test_fused_embeddings_equal_the_towers(how: str, outliers: bool) -> None:
    tower = tower_of(0, outliers)
    blocks, dtype = folded_blocks(tower), torch.float16
    apart = ClassStream(blocks) if "apart" in how else None
    middle = (
        fused.NormPasses(blocks, dtype)
        if how == "passes"
        else fused.DeferredNorms(blocks, 4 * SPEC.tokens, DEVICE, dtype, apart)
    )
    work = Workspace.make(SPEC, 4, DEVICE, dtype)
    encoder = fused.FusedEncoder(tower, middle)
    images = pixels(3)
    encoder.patchify(images, work.first(3))
    out = encoder.encode(work.first(3))
    expected = tower(normalize(images, SPEC))
    assert float((out - expected).norm() / expected.norm()) < 3e-3


def float8_encoder(tower: VisionTower) -> tuple[fused.FusedEncoder, Workspace, Tensor]:
    """A float8 encoder calibrated on 12 images, and their float16 embeddings."""
    blocks = folded_blocks(tower)
    work = Workspace.make(SPEC, 4, DEVICE, torch.float16)
    encoder = fused.FusedEncoder(tower, fused.NormPasses(blocks, torch.float16))
    calibration, reference = calibrate.observe(encoder, pixels(12, seed=1), work)
    encoder.trunk = fused_fp8.Float8Blocks(blocks, calibration, 4 * (SPEC.tokens - 1), DEVICE)
    return encoder, work, reference


@pytest.mark.parametrize("outliers", [False, True])
def test_float8_embeddings_are_near_the_towers(outliers: bool) -> None:
    tower = tower_of(0, outliers)
    encoder, work, _ = float8_encoder(tower)
    images = pixels(4, seed=2)
    encoder.patchify(images, work)
    assert cosine_distance(encoder.encode(work), tower(normalize(images, SPEC))) < 4e-3


def test_corrected_heads_remove_a_linear_error() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(400, 48, generator=generator)
    reference /= reference.norm(dim=1, keepdim=True)
    spoiled = reference @ (torch.eye(48) + 0.05 * torch.randn(48, 48, generator=generator)) / 48**0.5
    heads = HeadBank([Head("h", head_from_state(random_head_state(48)))], 48)
    corrected = calibrate.corrected_heads(heads, spoiled[:300], reference[:300])
    before, after = (
        (bank(spoiled[300:]) - heads(reference[300:])).abs().mean() for bank in (heads, corrected)
    )
    assert float(after) < 0.3 * float(before)
    assert heads.w_AD is not corrected.w_AD
