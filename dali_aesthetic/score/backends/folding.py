"""Exact algebra on a tower's weights, in float64, so that each is rounded once.

LayerNorm's gain and bias are folded into the weights that follow, the softmax scale into the queries, mean,
std and 255 into the patch weights. The key bias cancels in the softmax. The value bias moves behind the
attention, whose weights add up to one.

Shape legend: W width, K values of a patch, D embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dali_aesthetic.score.clip import Block, VisionTower
from dali_aesthetic.score.spec import TowerSpec

PIXEL_OFFSET, PIXEL_STEP = 128.0, 64.0
"""Patch values are `(pixel - 128) / 64`: exact in float16 and bfloat16, centred and of order one."""


def softmax_scale(size: int) -> float:
    """The factor of the queries, for heads of `size` and a softmax in base 2."""
    return math.log2(math.e) / math.sqrt(size)


def padded_patch(patch_size: int) -> int:
    """K: the values of a patch, rounded up to a multiple of 8 so that rows stay 16-byte aligned."""
    return -(-3 * patch_size * patch_size // 8) * 8


@dataclass(frozen=True, slots=True)
class FoldedBlock:
    """A block's weights and biases in float64, for normalised inputs; q carries the softmax scale.

    Keys and values have no bias.
    """

    heads: int
    q: Tensor
    q_bias: Tensor
    k: Tensor
    v: Tensor
    proj: Tensor
    proj_bias: Tensor
    fc1: Tensor
    fc1_bias: Tensor
    fc2: Tensor
    fc2_bias: Tensor

    @property
    def qkv(self) -> Tensor:
        """[3W, W]."""
        return torch.cat([self.q, self.k, self.v])

    @property
    def qkv_bias(self) -> Tensor:
        """[3W], zero for keys and values."""
        return torch.cat([self.q_bias, self.q_bias.new_zeros(2 * len(self.k))])


def fold_norm(weight: Tensor, bias: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, that take the input without the norm's gain and bias."""
    wide = weight.double()
    return wide * norm.weight.double(), bias.double() + wide @ norm.bias.double()


def fold_block(block: Block) -> FoldedBlock:
    """A block with norms, biases and softmax scale folded."""
    weight, bias = fold_norm(block.qkv.weight, block.qkv.bias, block.ln_1)
    (q, k, v), (q_bias, _, v_bias) = weight.chunk(3), bias.chunk(3)
    scale = softmax_scale(q.shape[0] // block.heads)
    fc1, fc1_bias = fold_norm(block.fc1.weight, block.fc1.bias, block.ln_2)
    proj = block.proj.weight.double()
    return FoldedBlock(
        heads=block.heads,
        q=q * scale,
        q_bias=q_bias * scale,
        k=k,
        v=v,
        proj=proj,
        proj_bias=block.proj.bias.double() + proj @ v_bias,
        fc1=fc1,
        fc1_bias=fc1_bias,
        fc2=block.fc2.weight.double(),
        fc2_bias=block.fc2.bias.double(),
    )


def fold_all_but_the_last(tower: VisionTower) -> list[FoldedBlock]:
    """Every block folded but the last, which is computed for the class token only."""
    return [fold_block(block) for block in tower.blocks[:-1] if isinstance(block, Block)]


def fold_projection(tower: VisionTower) -> tuple[Tensor, Tensor]:
    """Weight [D, W] and bias [D], float64, from a normalised class token to the embedding."""
    projection = tower.projection.T
    return fold_norm(projection, projection.new_zeros(len(projection)), tower.ln_post)


def fold_pixels(weight_W3PP: Tensor, spec: TowerSpec) -> tuple[Tensor, Tensor]:
    """Weight [W, K] and bias [W], float64, for patches of `(pixel - 128) / 64` in the order y, x, channel."""
    weight = weight_W3PP.double()
    mean, std = (weight.new_tensor(channel).view(1, 3, 1, 1) for channel in (spec.mean, spec.std))
    scaled = (weight / std * (PIXEL_STEP / 255)).permute(0, 2, 3, 1).flatten(1)
    bias = (weight * ((PIXEL_OFFSET / 255 - mean) / std)).flatten(1).sum(1)
    return F.pad(scaled, (0, padded_patch(spec.patch_size) - scaled.shape[1])), bias


def fold_positions(tower: VisionTower, patch_bias_W: Tensor) -> Tensor:
    """The addend of the patch products, float64 [L, W]; row 0 is the whole class token."""
    table = tower.positional_embedding.double() + patch_bias_W
    table[0] = tower.positional_embedding[0].double() + tower.class_embedding.double()
    return table
