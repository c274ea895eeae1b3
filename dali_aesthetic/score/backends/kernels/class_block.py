"""The last block, for the class token only, in float16: plain torch on [N, W] and one kernel.

Only the class token has a query, so keys and values are never computed: `q.k = q.(Wk x) = (Wk^T q).x` and
`sum p v = Wv (sum p x)`. The two weights are applied to one row a head instead of to every token, and what
is left is a weighted mean of the normalised tokens themselves.

Shape legend: N images, P patches of an image (a power of two), R = N * P rows, W width, H heads, S = W / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from dali_aesthetic.score.backends.folding import FoldedBlock


class ClassBlock:
    """The class token's way through a block; the other tokens are only read."""

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
        """The class token [N, W] after the block, given the one before it and all tokens normalised."""
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


def class_attention(asks_NHW: Tensor, patches_RW: Tensor, class_NW: Tensor, out_NHW: Tensor) -> None:
    """`out = softmax2(asks tokens^T) tokens` for each image: float32 softmax in base 2.

    `asks` are queries times key weights, with `softmax_scale`; tokens are an image's patches [N * P, W] and
    its class token. All are contiguous and of one dtype, float16 or bfloat16.
    """
    images, heads, width = asks_NHW.shape
    patches = patches_RW.shape[0] // images
    padded = max(16, triton.next_power_of_2(heads))
    _class_attention[(images,)](
        asks_NHW, patches_RW, class_NW, out_NHW, heads, padded, patches, width, min(64, width), num_warps=8
    )


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _class_attention(
    asks: tl.tensor,
    patches: tl.tensor,
    classes: tl.tensor,
    out: tl.tensor,
    HEADS: tl.constexpr,
    PADDED: tl.constexpr,
    PATCHES: tl.constexpr,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    image = tl.program_id(0).to(tl.int64)
    head, patch, step = tl.arange(0, PADDED), tl.arange(0, PATCHES), tl.arange(0, STEP)
    live = (head < HEADS)[:, None]
    x = patches + image * PATCHES * WIDTH
    x_class = classes + image * WIDTH
    at = (image * HEADS + head)[:, None] * WIDTH + step[None, :]
    s = tl.zeros([PADDED, PATCHES], tl.float32)
    s_class = tl.zeros([PADDED], tl.float32)
    for start in tl.range(0, WIDTH, STEP, num_stages=3):
        ask = tl.load(asks + at + start, mask=live, other=0.0)
        keys = tl.load(x + patch[:, None] * WIDTH + start + step[None, :])
        key_class = tl.load(x_class + start + step).to(tl.float32)
        s += tl.dot(ask, keys.T)
        s_class += tl.sum(ask.to(tl.float32) * key_class[None, :], 1)
    top = tl.maximum(tl.max(s, 1), s_class)
    p = tl.exp2(s - top[:, None])
    p_class = tl.exp2(s_class - top)
    share = 1.0 / (tl.sum(p, 1) + p_class)
    weights = p.to(patches.dtype.element_ty)
    for start in tl.range(0, WIDTH, STEP, num_stages=3):
        values = tl.load(x + patch[:, None] * WIDTH + start + step[None, :])
        value_class = tl.load(x_class + start + step).to(tl.float32)
        o = (tl.dot(weights, values) + p_class[:, None] * value_class[None, :]) * share[:, None]
        tl.store(out + at + start, o.to(out.dtype.element_ty), mask=live)
