"""Pixels to scores as one module: what every backend computes, and what TorchScript traces."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dali_aesthetic.score.clip import Normalize, VisionTower
from dali_aesthetic.score.head import HeadBank

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The precisions of the plain backends: what the tower's weights and activations are stored in."""


class ScoringModule(nn.Module):
    """Normalise, embed, score. The tower computes in `dtype`; pixels and heads are always in float32."""

    def __init__(self, tower: VisionTower, heads: HeadBank, dtype: torch.dtype = torch.float32) -> None:
        """Takes the tower over: its weights are converted in place."""
        super().__init__()
        self.normalize = Normalize(tower.spec, dtype)
        self.tower = tower.to(dtype)
        self.heads = heads.float()
        self.requires_grad_(False).eval()

    def forward(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N, H] float32 and embeddings [N, D] in `dtype`, not normalised, of uint8 pixels."""
        embeddings_ND = self.tower(self.normalize(images_NHWC))
        return self.heads(embeddings_ND), embeddings_ND
