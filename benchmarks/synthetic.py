"""Weights and images made of random numbers, as the encoder's ladder measures speed and score errors with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.roofline import VIT_L_14
from dali_aesthetic.score.head import Head, HeadBank, head_from_state
from dali_aesthetic.score.weights import random_head_state, random_tower_state

SPEC = VIT_L_14
DEVICE = torch.device("cuda")


def synthetic_images(count: int, seed: int) -> Tensor:
    """Pixels [N, S, S, 3] with a natural image's spectrum, and contrast and brightness of their own."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    size = SPEC.image_size
    pixels = torch.zeros(count, 3, size, size, device=DEVICE)
    for octave in (2, 4, 8, 16, 32, 64, 128):
        gray = torch.randn(count, 1, octave, octave, generator=generator, device=DEVICE)
        colour = torch.randn(count, 3, octave, octave, generator=generator, device=DEVICE)
        strength = 2 * torch.rand(count, 1, 1, 1, generator=generator, device=DEVICE) * octave**-0.5
        pixels += strength * F.interpolate(gray + 0.5 * colour, size=(size, size), mode="bicubic")
    contrast, brightness = torch.rand(2, count, 1, 1, 1, generator=generator, device=DEVICE)
    pixels = pixels * (20 + 60 * contrast) + 60 + 130 * brightness
    images_NHWC: Tensor = pixels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return images_NHWC


def tower_state(outliers: bool) -> dict[str, Tensor]:
    """Random weights; with outliers, uneven norms, two huge channels, two rare hard neurons."""
    state = random_tower_state(SPEC)
    if not outliers:
        return state
    generator = torch.Generator().manual_seed(5)
    for name in [name for name in state if ".ln_" in name]:
        state[name] += 0.3 * (torch.rand(SPEC.width, generator=generator) - 0.5)
        if name.endswith("weight"):
            state[name][torch.randint(0, SPEC.width, (6,), generator=generator)] *= 8
    state["blocks.1.fc2.bias"][7], state["blocks.1.fc2.bias"][512] = 40.0, -25.0
    for block in (2, 12):
        state[f"blocks.{block}.fc1.weight"][11] *= 8
        state[f"blocks.{block}.fc1.bias"][11] = -9.0
        state[f"blocks.{block}.fc2.weight"][:, 11] *= 60
    return state


def head_bank() -> HeadBank:
    """One random linear head of the published one's size."""
    head = Head("random", head_from_state(random_head_state(SPEC.embed_dim)))
    return HeadBank([head], SPEC.embed_dim).to(DEVICE)
