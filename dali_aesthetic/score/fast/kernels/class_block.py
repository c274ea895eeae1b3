"""The last block, for the class token only, in float16: plain torch on [N, W] and one kernel.

Shape legend: N images, R patches of them all, W width, H heads, S = W / H, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dali_aesthetic.score.fast.folding import FoldedBlock
from dali_aesthetic.score.fast.kernels.class_attention import class_attention


class ClassBlock:
    """A block whose keys and values are never made; see `class_attention`."""

    def __init__(self, folded: FoldedBlock, quick_gelu: bool) -> None:
        self._quick_gelu = quick_gelu
        heads, width = folded.heads, folded.q.shape[1]
        self._q, self._q_bias = folded.q.half(), folded.q_bias.half()
        self._k_HSW = folded.k.view(heads, -1, width).half()
        self._v_HWS = folded.v.view(heads, -1, width).mT.contiguous().half()
        self._proj, self._proj_bias = folded.proj.half(), folded.proj_bias.half()
        self._fc1, self._fc1_bias = folded.fc1.half(), folded.fc1_bias.half()
        self._fc2, self._fc2_bias = folded.fc2.half(), folded.fc2_bias.half()

    def __call__(self, class_NW: Tensor, normed_RW: Tensor, normed_class_NW: Tensor, eps: float) -> Tensor:
        """The class token [N, W] after the block, from the residual stream's and all tokens normalised."""
        images, width = normed_class_NW.shape
        q_NHS = F.linear(normed_class_NW, self._q, self._q_bias).view(images, len(self._k_HSW), -1)
        asks_NHW = torch.bmm(q_NHS.transpose(0, 1), self._k_HSW).transpose(0, 1).contiguous()
        mixed_NHW = torch.empty_like(asks_NHW)
        class_attention(asks_NHW, normed_RW, normed_class_NW, mixed_NHW)
        attended_HNS = torch.bmm(mixed_NHW.transpose(0, 1), self._v_HWS)
        attended_NW = attended_HNS.transpose(0, 1).reshape(images, width)
        class_NW = class_NW + F.linear(attended_NW, self._proj, self._proj_bias)
        hidden = F.linear(F.layer_norm(class_NW, (width,), eps=eps), self._fc1, self._fc1_bias)
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self._quick_gelu else F.gelu(hidden)
        return class_NW + F.linear(hidden, self._fc2, self._fc2_bias)
