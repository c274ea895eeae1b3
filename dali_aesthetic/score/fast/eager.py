"""The reference as a backend: the modules as they are, one kernel per operation."""

from __future__ import annotations

import torch
from torch import Tensor

from dali_aesthetic.score.clip import VisionTower, check_pixels
from dali_aesthetic.score.fast.module import DTYPES, ScoringModule
from dali_aesthetic.score.head import HeadBank


class EagerBackend:
    """See `Backend`."""

    name = "eager"

    def __init__(self, tower: VisionTower, heads: HeadBank, device: torch.device, precision: str) -> None:
        self.precision = precision
        self.spec = tower.spec
        self.head_names = heads.names
        self._module = ScoringModule(tower, heads, DTYPES[precision]).to(device)

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend`."""
        check_pixels(images_NHWC, self.spec)
        with torch.inference_mode():
            scores_NH, embeddings_ND = self._module(images_NHWC)
        return scores_NH, embeddings_ND


def build(
    tower: VisionTower, heads: HeadBank, device: torch.device, precision: str, batch_size: int
) -> EagerBackend:
    """An eager backend; it takes any batch size."""
    return EagerBackend(tower, heads, device, precision)
