"""From uint8 pixels to the first block's input: patches as matrix rows, then tokens normalised twice.

Shape legend: N images, S pixels, P patch, G = S / P patches of a side, K = 3 * P * P values of a patch,
rounded up to a multiple of 8 so that rows stay 16-byte aligned, L = G * G + 1 tokens, W width.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dali_aesthetic.score.fast.kernels.layernorm import standardize

_TOKENS = 4


def patchify(images_NHWC: Tensor, out_RK: Tensor, patch_size: int) -> None:
    """Rows [N * G * G, K] of `(pixel - 128) / 64` in the order y, x, channel; the padding is zero."""
    count, size = images_NHWC.shape[:2]
    side, columns = size // patch_size, out_RK.shape[1]
    padded = triton.next_power_of_2(columns)
    _patchify[(count * side * side,)](
        images_NHWC, out_RK, size, patch_size, side, columns, padded, num_warps=4
    )


def assemble(
    patches_RW: Tensor,
    positions_LW: Tensor,
    gain_W: Tensor,
    bias_W: Tensor,
    tokens_NLW: Tensor,
    normed_NLW: Tensor | None,
    eps: float,
) -> None:
    """Tokens after `ln_pre` and, if asked for, the same normalised again, without gain, for block 0.

    `patches` are the patch GEMM's rows [N * (L - 1), W]. `positions` float32 hold the class token in
    row 0 and the patch bias in the others. Gain and bias (float32) are `ln_pre`'s.
    """
    images, tokens, width = tokens_NLW.shape
    rows = images * tokens
    grid = (triton.cdiv(rows, _TOKENS),)
    padded = triton.next_power_of_2(width)
    _assemble[grid](
        patches_RW,
        positions_LW,
        gain_W,
        bias_W,
        tokens_NLW,
        normed_NLW,
        rows,
        eps,
        tokens,
        width,
        padded,
        _TOKENS,
        num_warps=_TOKENS,
    )


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _patchify(
    images: tl.tensor,
    out: tl.tensor,
    SIZE: tl.constexpr,
    PATCH: tl.constexpr,
    SIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PADDED: tl.constexpr,
) -> None:
    index = tl.program_id(0)
    image, patch = index // (SIDE * SIDE), index % (SIDE * SIDE)
    column = tl.arange(0, PADDED)
    y, x = column // (3 * PATCH), column % (3 * PATCH)
    corner = (image.to(tl.int64) * SIZE + (patch // SIDE) * PATCH) * SIZE * 3 + (patch % SIDE) * PATCH * 3
    pixel = tl.load(images + corner + y * SIZE * 3 + x, mask=column < 3 * PATCH * PATCH, other=128)
    value = (pixel.to(tl.float32) - 128.0) * (1.0 / 64.0)
    tl.store(
        out + index.to(tl.int64) * COLUMNS + column, value.to(out.dtype.element_ty), mask=column < COLUMNS
    )


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _assemble(
    patches: tl.tensor,
    positions: tl.tensor,
    gain: tl.tensor,
    bias: tl.tensor,
    tokens: tl.tensor,
    normed: tl.tensor,
    count: tl.tensor,
    eps: tl.tensor,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    image, token = row // TOKENS, row % TOKENS
    column = tl.arange(0, PADDED)
    inside = column < WIDTH
    live = (row < count)[:, None] & inside[None, :]
    source = (image.to(tl.int64) * (TOKENS - 1) + token - 1)[:, None] * WIDTH + column[None, :]
    patch = tl.load(patches + source, mask=live & (token > 0)[:, None], other=0.0).to(tl.float32)
    x = patch + tl.load(positions + token[:, None] * WIDTH + column[None, :], mask=live, other=0.0)
    g, b = tl.load(gain + column, mask=inside, other=0.0), tl.load(bias + column, mask=inside, other=0.0)
    h = (standardize(x, live, eps, WIDTH) * g[None, :] + b[None, :]).to(tokens.dtype.element_ty)
    at = row[:, None].to(tl.int64) * WIDTH + column[None, :]
    tl.store(tokens + at, h, mask=live)
    if normed is not None:
        y = standardize(h.to(tl.float32), live, eps, WIDTH)
        tl.store(normed + at, y.to(normed.dtype.element_ty), mask=live)
