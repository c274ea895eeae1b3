"""Towers and heads with random weights: for tests, benchmarks and a demo without downloads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dali_aesthetic.score.spec import TowerSpec


class _Uniform:
    """Uniform random tensors, float32 on the CPU, from an own generator.

    Uniform only: torch's normal samples differ in their last bits between CPUs (its vectorised code takes
    another logarithm), these are the same on every machine. The global generator is not touched.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def bound(self, bound: float, *shape: int) -> Tensor:
        """Values in [-bound, bound)."""
        return torch.rand(*shape, generator=self._generator).mul_(2).sub_(1).mul_(bound)

    def std(self, std: float, *shape: int) -> Tensor:
        """Values of mean zero and this standard deviation."""
        return self.bound(math.sqrt(3) * std, *shape)


def random_tower_state(spec: TowerSpec, seed: int = 0) -> dict[str, Tensor]:
    """Weights for `VisionTower.from_state`, at the scales that open_clip initialises its own with."""
    draw = _Uniform(seed)
    width, patch = spec.width, spec.patch_size
    scale = width**-0.5
    state = {
        "patch_embed.weight": draw.bound((3 * patch * patch) ** -0.5, width, 3, patch, patch),
        "class_embedding": draw.std(scale, width),
        "positional_embedding": draw.std(scale, spec.tokens, width),
        "projection": draw.std(scale, width, spec.embed_dim),
        **_layer_norm("ln_pre", width),
        **_layer_norm("ln_post", width),
    }
    for index in range(spec.layers):
        state |= {f"blocks.{index}.{name}": value for name, value in _random_block(spec, draw).items()}
    return state


def _random_block(spec: TowerSpec, draw: _Uniform) -> dict[str, Tensor]:
    width, mlp_width = spec.width, spec.mlp_width
    return {
        **_layer_norm("ln_1", width),
        "qkv.weight": draw.bound(math.sqrt(6 / (4 * width)), 3 * width, width),
        "qkv.bias": torch.zeros(3 * width),
        "proj.weight": draw.bound(width**-0.5, width, width),
        "proj.bias": torch.zeros(width),
        **_layer_norm("ln_2", width),
        "fc1.weight": draw.bound(width**-0.5, mlp_width, width),
        "fc1.bias": draw.bound(width**-0.5, mlp_width),
        "fc2.weight": draw.bound(mlp_width**-0.5, width, mlp_width),
        "fc2.bias": draw.bound(mlp_width**-0.5, width),
    }


def _layer_norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def random_head_state(embed_dim: int, seed: int = 0) -> dict[str, Tensor]:
    """A linear head for unit embeddings whose scores spread around 5, as LAION's do."""
    # Seeded apart from the tower of the same seed, whose first numbers it would repeat.
    draw = _Uniform(seed + 1_000_003)
    return {"weight": draw.std(18 * embed_dim**-0.5, 1, embed_dim), "bias": torch.full((1,), 5.0)}
