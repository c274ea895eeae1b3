"""The class tokens' own float16 path, with QuACK's products by torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from dali_aesthetic.score.backends.class_stream import ClassStream
from dali_aesthetic.score.backends.folding import fold_block
from dali_aesthetic.score.clip import Block, VisionTower
from dali_aesthetic.score.spec import TowerSpec
from dali_aesthetic.score.weights import random_tower_state
from tests.score.backends import twins

WIDTH, IMAGES = 64, 5
SPEC = TowerSpec(
    name="tiny", image_size=56, patch_size=14, width=WIDTH, layers=2, heads=2, mlp_width=128, embed_dim=48,
    quick_gelu=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _products_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    twins.products(monkeypatch)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def block() -> Block:
    """A block whose norms and biases aren't trivial."""
    state = random_tower_state(SPEC)
    for name, tensor in state.items():
        if ".ln_" in name or name.endswith("bias"):
            tensor += 0.3 * noise(*tensor.shape)
    first = VisionTower.from_state(SPEC, state).blocks[0]
    assert isinstance(first, Block)
    return first


def test_a_class_token_alone_gets_the_result_of_the_block(block: Block) -> None:
    """Without patches the softmax is one, and the class token attends to its own values."""
    tokens_NW = noise(IMAGES, WIDTH, seed=1)
    found = tokens_NW.half()
    ClassStream([fold_block(block)])(0, found, lambda qkv, out: out.copy_(qkv[:, 2 * WIDTH :]))
    expected = block(tokens_NW[:, None])[:, 0]
    assert float((found.float() - expected).norm() / expected.norm()) < 2e-3


def test_shifts_change_keys_and_values_and_cancel_in_the_result(block: Block) -> None:
    folded = fold_block(block)
    shifts = noise(WIDTH, seed=2).double(), noise(WIDTH, seed=3).double()
    seen: list[Tensor] = []
    ended: list[Tensor] = []
    for given, lacking in ((None, torch.zeros(WIDTH)), ([shifts], shifts[1])):
        tokens_NW = noise(IMAGES, WIDTH, seed=1).half()

        def attend(qkv: Tensor, out: Tensor, lacking: Tensor = lacking) -> None:
            seen.append(qkv.double())
            out.copy_(noise(IMAGES, WIDTH, seed=4) - lacking)

        ClassStream([folded], given)(0, tokens_NW, attend)
        ended.append(tokens_NW)
    lacked = (seen[0] - seen[1]).mean(0)
    torch.testing.assert_close(lacked, torch.cat([torch.zeros(WIDTH), *shifts]), atol=5e-3, rtol=0)
    torch.testing.assert_close(ended[0], ended[1], atol=2e-2, rtol=2e-3)
