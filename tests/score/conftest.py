"""A CLIP small enough for tests, which open_clip knows by name, and the folder of real heads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor

from dali_aesthetic.score.backends.backend import Backend, build_backend
from dali_aesthetic.score.clip import VisionTower
from dali_aesthetic.score.head import Head, HeadBank, head_from_state
from dali_aesthetic.score.spec import TowerSpec, spec_of
from dali_aesthetic.score.weights import random_head_state, random_tower_state

CPU = torch.device("cpu")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an open_clip model: 32 pixels, 17 tokens, 3 layers of width 128, 32 numbers out."""
    vision = {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    folder = tmp_path_factory.mktemp("configs")
    for name, more in (("tiny-vit", {}), ("tiny-vit-quickgelu", {"quick_gelu": True})):
        (folder / f"{name}.json").write_text(json.dumps(config | more))
    open_clip.add_model_config(folder)
    return "tiny-vit"


@pytest.fixture(scope="session")
def tiny_spec(tiny: str) -> TowerSpec:
    return spec_of(tiny)


@pytest.fixture(scope="session")
def pixels(tiny_spec: TowerSpec) -> Tensor:
    """Sixteen different images, uint8 [16, 32, 32, 3]."""
    size = tiny_spec.image_size
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (16, size, size, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture
def make_backend(tiny_spec: TowerSpec) -> Callable[..., Backend]:
    """Builds a backend of the tiny tower with two heads, by name, device and precision."""

    def make(name: str, device: torch.device = CPU, precision: str = "auto", batch_size: int = 16) -> Backend:
        tower = VisionTower.from_state(tiny_spec, random_tower_state(tiny_spec, seed=0))
        heads = [Head(f"h{i}", head_from_state(random_head_state(tiny_spec.embed_dim, i))) for i in range(2)]
        return build_backend(name, tower, HeadBank(heads, tiny_spec.embed_dim), device, precision, batch_size)

    return make


@pytest.fixture(scope="session")
def heads_dir() -> Path:
    """Published heads and embeddings, in DALI_AESTHETIC_HEADS or `../shared/heads` beside the repository."""
    default = Path(__file__).parents[3] / "shared" / "heads"
    folder = Path(os.environ.get("DALI_AESTHETIC_HEADS", default))
    if not folder.is_dir():
        pytest.skip("no folder of real heads: set DALI_AESTHETIC_HEADS")
    return folder
