"""Class tokens in float16 beside patches in a coarser format: a 257th of the rows, and all that is scored.

The score is computed from the class token, so rounding of its own row affects it directly, rounding of a
patch only through a softmax over all of them. With float8 patches this took the mean score error from
0.014 to 0.005 (`benchmarks/results/encoder_*.md`).

Shape legend: N images, W width, F MLP width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dali_aesthetic.score.backends.folding import FoldedBlock
from dali_aesthetic.score.backends.kernels.gemm import Gemm
from dali_aesthetic.score.clip import LAYER_NORM_EPS

Attend = Callable[[Tensor, Tensor], None]
"""Writes the attention outputs of class tokens [N, W], given their qkv [N, 3W], and those of the patches."""


class ClassStream:
    """All blocks but the last, for class tokens that are normalised, multiplied and added up in float16."""

    def __init__(
        self, blocks: Sequence[FoldedBlock], shifts: Sequence[tuple[Tensor, Tensor]] | None = None
    ) -> None:
        """`shifts` are per block what the patches' keys and values lack, float64 [W] each; see `FoldedBlock`.

        A shift of all keys cancels in the softmax; a shift of the values is added back in `proj_bias`.
        """
        self._blocks = [
            _ClassBlock(block, None if shifts is None else shifts[index])
            for index, block in enumerate(blocks)
        ]

    def __call__(self, index: int, class_NW: Tensor, attend: Attend) -> None:
        """Block `index`, in place."""
        self._blocks[index](class_NW, attend)


class _ClassBlock:
    def __init__(self, block: FoldedBlock, shifts: tuple[Tensor, Tensor] | None) -> None:
        bias, proj_bias = block.qkv_bias, block.proj_bias
        if shifts is not None:
            keys, values = shifts
            bias = bias - torch.cat([torch.zeros_like(keys), keys, values])
            proj_bias = proj_bias + block.proj @ values
        self._qkv, self._qkv_bias = block.qkv.half(), bias.half()
        self._proj, self._proj_bias = block.proj.half(), proj_bias.half()
        self._fc1 = Gemm("linear_quick_gelu", block.fc1.half(), b=block.fc1_bias.float())
        self._fc2, self._fc2_bias = block.fc2.half(), block.fc2_bias.half()

    def __call__(self, class_NW: Tensor, attend: Attend) -> None:
        attended_NW = torch.empty_like(class_NW)
        attend(F.linear(_normalized(class_NW), self._qkv, self._qkv_bias), attended_NW)
        class_NW += F.linear(attended_NW, self._proj, self._proj_bias)
        hidden_NF = class_NW.new_empty(len(class_NW), self._fc1.channels_out)
        self._fc1(_normalized(class_NW), hidden_NF)
        class_NW += F.linear(hidden_NF, self._fc2, self._fc2_bias)


def _normalized(class_NW: Tensor) -> Tensor:
    return F.layer_norm(class_NW, class_NW.shape[1:], eps=LAYER_NORM_EPS)
