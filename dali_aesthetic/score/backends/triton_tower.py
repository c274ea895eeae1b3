"""The fused tower for GPUs without QuACK: matrix products by cuBLAS, with our Triton kernels between them.

The same exact algebra as `fused.py`. cuBLAS adds the products of proj and fc2 to the residual stream, which
leaves no room for their biases: each block keeps the sum of the biases so far, and each reader of the stream
adds it. QuickGELU is `silu(1.702 x) / 1.702`, and the two factors go into the weights around it.

Shape legend: W width, F MLP width, K input and N output channels of a product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dali_aesthetic.score.backends import folding
from dali_aesthetic.score.backends.folding import FoldedBlock
from dali_aesthetic.score.backends.fused import FusedBackend, FusedEncoder
from dali_aesthetic.score.backends.kernels import attention, layernorm
from dali_aesthetic.score.backends.workspace import Workspace
from dali_aesthetic.score.clip import LAYER_NORM_EPS, VisionTower
from dali_aesthetic.score.head import HeadBank

_QUICK_GELU = 1.702


def build(
    tower: VisionTower, heads: HeadBank, device: torch.device, precision: str, batch_size: int
) -> FusedBackend:
    """The backend `triton`, in fp16."""
    tower = tower.float().to(device)
    blocks = folding.fold_all_but_the_last(tower)
    encoder = FusedEncoder(tower, CublasBlocks(blocks, tower.spec.quick_gelu))
    work = Workspace.make(tower.spec, batch_size, device, torch.float16)
    return FusedBackend(encoder, heads.float().to(device), work, precision, name="triton")


class CublasBlocks:
    """The `fused.Trunk` in float16."""

    wants_normed = True

    def __init__(self, blocks: Sequence[FoldedBlock], quick_gelu: bool) -> None:
        self._heads, self._quick_gelu = blocks[0].heads, quick_gelu
        lacking_W = torch.zeros_like(blocks[0].proj_bias)
        self._blocks = []
        for block in blocks:
            self._blocks.append(_CublasBlock(block, lacking_W, quick_gelu))
            lacking_W = lacking_W + block.proj_bias + block.fc2_bias
        self._lacking_W = lacking_W.half()

    def __call__(self, work: Workspace) -> None:
        h, normed = work.tokens_RW, work.normed_RW
        rows, width = h.shape
        for block in self._blocks:
            packed = work.scratch(rows, 3 * width)
            torch.addmm(block.qkv_bias, normed, block.qkv_KN, out=packed)
            attention.attend(*work.split(packed), *work.split(normed), self._heads)
            h.addmm_(normed, block.proj_KN)
            layernorm.normalize_rows(h, normed, LAYER_NORM_EPS, addend_W=block.after_proj_W)
            hidden = work.scratch(rows, block.fc1_KN.shape[1])
            torch.addmm(block.fc1_bias, normed, block.fc1_KN, out=hidden)
            h.addmm_(self._activated(hidden), block.fc2_KN)
            layernorm.normalize_rows(h, normed, LAYER_NORM_EPS, addend_W=block.after_fc2_W)
        # Of the stream itself the last block reads only the class tokens.
        work.split(h)[1].add_(self._lacking_W)

    def _activated(self, hidden_RF: Tensor) -> Tensor:
        return F.silu(hidden_RF, inplace=True) if self._quick_gelu else F.gelu(hidden_RF)


class _CublasBlock:
    """A block's weights, [K, N] float16, and the biases that the stream lacks after its two products."""

    def __init__(self, block: FoldedBlock, lacking_W: Tensor, quick_gelu: bool) -> None:
        factor = _QUICK_GELU if quick_gelu else 1.0
        self.qkv_KN, self.qkv_bias = block.qkv.half().T, block.qkv_bias.half()
        self.proj_KN = block.proj.half().T
        self.fc1_KN, self.fc1_bias = (block.fc1 * factor).half().T, (block.fc1_bias * factor).half()
        self.fc2_KN = (block.fc2 / factor).half().T
        after_proj_W = lacking_W + block.proj_bias
        self.after_proj_W, self.after_fc2_W = after_proj_W.float(), (after_proj_W + block.fc2_bias).float()
