"""Weights and scales for float8_e4m3fn products: weights per output channel, inputs by one static scale.

Shape legend: N output channels, K input channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 448.0
"""The largest float8_e4m3fn."""


def quantize_weight(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn [N, K] and float32 [N] with `weight = quantized * scale`, each channel's peak at 448."""
    scale_N = weight_NK.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
    return (weight_NK / scale_N[:, None]).to(torch.float8_e4m3fn), scale_N.float()


def calibrated_scale(peak: float, headroom: float = 2.0) -> float:
    """What an input is multiplied with whose calibration samples reached `peak`.

    Headroom costs almost no precision: e4m3 has 15 binades.
    """
    return LARGEST / (max(peak, 1e-6) * headroom)
