"""The buffers of a batch: allocated once, overwritten by every batch and every block.

Every buffer of tokens holds the patches of all images first, then their class tokens, so that the two may
be computed apart (`class_stream.py`).

Shape legend: N images, P patches of an image, R = N * (P + 1) rows, W width, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dali_aesthetic.score.backends import folding
from dali_aesthetic.score.spec import TowerSpec


@dataclass(frozen=True, slots=True)
class Workspace:
    """The buffers of a batch. `wide` holds patches, then each block's qkv, then its hidden values.

    Class tokens are always float16; patches have the dtype of the buffers, which is two bytes wide.
    """

    images: int
    tokens_RW: Tensor
    normed_RW: Tensor
    wide: Tensor

    @classmethod
    def make(cls, spec: TowerSpec, images: int, device: torch.device, dtype: torch.dtype) -> Workspace:
        """Uninitialised buffers for `images` images."""
        rows = images * spec.tokens
        tokens, normed = (torch.empty(rows, spec.width, device=device, dtype=dtype) for _ in range(2))
        columns = max(3 * spec.width, spec.mlp_width, folding.padded_patch(spec.patch_size) + spec.width)
        return cls(images, tokens, normed, torch.empty(rows * columns, device=device, dtype=dtype))

    def first(self, images: int) -> Workspace:
        """The same buffers for fewer images."""
        rows = self.tokens_RW.shape[0] // self.images * images
        return Workspace(images, self.tokens_RW[:rows], self.normed_RW[:rows], self.wide)

    def scratch(self, rows: int, columns: int) -> Tensor:
        """A contiguous [rows, columns] view of `wide`; the next one overwrites it."""
        return self.wide[: rows * columns].view(rows, columns)

    def split(self, rows_RC: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [N * P, C] and class tokens [N, C] of a buffer of all tokens."""
        patches = len(rows_RC) - self.images
        return rows_RC[:patches], rows_RC[patches:].view(torch.float16)
