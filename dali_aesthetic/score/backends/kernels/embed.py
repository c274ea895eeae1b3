"""From uint8 pixels to the input of the first block: patches as matrix rows, then tokens normalised twice.

Shape legend: N images, S pixels, P patch, G = S / P patches of a side, K = 3 * P * P values of a patch,
rounded up to a multiple of 8 so that rows stay 16-byte aligned, L = G * G + 1 tokens, R = N * G * G patches,
W width.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dali_aesthetic.score.backends.kernels.layernorm import standardize

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
    embedded_RW: Tensor,
    positions_LW: Tensor,
    gain_W: Tensor,
    bias_W: Tensor,
    tokens: tuple[Tensor, Tensor],
    normed: tuple[Tensor, Tensor] | None,
    eps: float,
) -> None:
    """Writes patches [R, W] and class tokens [N, W] after `ln_pre` to `tokens`; to `normed`, where given,
    the same normalised again without gain, for block 0.

    `embedded` are the rows of the patch product. `positions`, float32, hold the class token in row 0 and the
    patch bias in the others. Gain and bias, float32, are those of `ln_pre`.
    """
    patch_rows, width = embedded_RW.shape
    rows = patch_rows + tokens[1].shape[0]
    grid = (triton.cdiv(rows, _TOKENS),)
    padded = triton.next_power_of_2(width)
    _assemble[grid](
        embedded_RW,
        positions_LW,
        gain_W,
        bias_W,
        *tokens,
        *(normed or (None, None)),
        patch_rows,
        rows,
        eps,
        positions_LW.shape[0],
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
    embedded: tl.tensor,
    positions: tl.tensor,
    gain: tl.tensor,
    bias: tl.tensor,
    patches: tl.tensor,
    classes: tl.tensor,
    normed_patches: tl.tensor,
    normed_classes: tl.tensor,
    patch_count: tl.tensor,
    count: tl.tensor,
    eps: tl.tensor,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_patch = row < patch_count
    token = tl.where(is_patch, 1 + row % (TOKENS - 1), 0)
    column = tl.arange(0, PADDED)
    inside = column < WIDTH
    of_patch = is_patch[:, None] & inside[None, :]
    of_class = ((row >= patch_count) & (row < count))[:, None] & inside[None, :]
    live = of_patch | of_class
    at = row[:, None].to(tl.int64) * WIDTH + column[None, :]
    at_class = (row - patch_count)[:, None].to(tl.int64) * WIDTH + column[None, :]
    x = tl.load(embedded + at, mask=of_patch, other=0.0).to(tl.float32)
    x += tl.load(positions + token[:, None] * WIDTH + column[None, :], mask=live, other=0.0)
    g, b = tl.load(gain + column, mask=inside, other=0.0), tl.load(bias + column, mask=inside, other=0.0)
    h = standardize(x, live, eps, WIDTH) * g[None, :] + b[None, :]
    tl.store(patches + at, h.to(patches.dtype.element_ty), mask=of_patch)
    tl.store(classes + at_class, h.to(classes.dtype.element_ty), mask=of_class)
    if normed_patches is not None:
        y = standardize(h.to(patches.dtype.element_ty).to(tl.float32), live, eps, WIDTH)
        tl.store(normed_patches + at, y.to(normed_patches.dtype.element_ty), mask=of_patch)
        tl.store(normed_classes + at_class, y.to(normed_classes.dtype.element_ty), mask=of_class)
