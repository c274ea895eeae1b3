"""LayerNorm without gain and bias, which are folded into the weights that follow. Each row is read once.

Shape legend: R rows, W width.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_ROWS, _WARPS = 4, 4


def normalize_rows(
    rows_RW: Tensor,
    out_RW: Tensor,
    eps: float,
    out_scale: float = 1.0,
    offset_W: Tensor | None = None,
    addend_W: Tensor | None = None,
) -> None:
    """`out = out_scale * (x - mean) / sqrt(var + eps) + offset` of each `x = row + addend`.

    In float32, rounded once. Rows may be strided; `out` is contiguous, float16, bfloat16, float32 or
    float8_e4m3fn, to which it saturates. `offset` and `addend` are float32.
    """
    count, width = rows_RW.shape
    grid = (triton.cdiv(count, _ROWS),)
    padded = triton.next_power_of_2(width)
    _normalize[grid](
        rows_RW,
        out_RW,
        offset_W,
        addend_W,
        rows_RW.stride(0),
        count,
        eps,
        out_scale,
        width,
        padded,
        _ROWS,
        num_warps=_WARPS,
    )


def row_moments(rows_RW: Tensor, scale_R: Tensor, shift_R: Tensor, eps: float) -> None:
    """`scale = 1 / sqrt(var + eps)` and `shift = mean * scale`, float32 [R], of contiguous rows."""
    count, width = rows_RW.shape
    grid = (triton.cdiv(count, _ROWS),)
    padded = triton.next_power_of_2(width)
    _moments[grid](rows_RW, scale_R, shift_R, count, eps, width, padded, _ROWS, num_warps=_WARPS)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def standardize(x: tl.tensor, live: tl.tensor, eps: tl.tensor, WIDTH: tl.constexpr) -> tl.tensor:
    """Float32 [rows, columns] with mean 0 and variance 1 in each row; zero where not live."""
    mean = tl.sum(x, 1) / WIDTH
    centred = tl.where(live, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / WIDTH
    return centred * tl.rsqrt(variance + eps)[:, None]


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _normalize(
    rows: tl.tensor,
    out: tl.tensor,
    offset: tl.tensor,
    addend: tl.tensor,
    pitch: tl.tensor,
    count: tl.tensor,
    eps: tl.tensor,
    out_scale: tl.tensor,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    live = (row < count)[:, None] & (column < WIDTH)[None, :]
    x = tl.load(rows + row[:, None].to(tl.int64) * pitch + column[None, :], mask=live, other=0.0).to(
        tl.float32
    )
    if addend is not None:
        x += tl.load(addend + column, mask=column < WIDTH, other=0.0)[None, :]
    y = standardize(x, live, eps, WIDTH) * out_scale
    if offset is not None:
        y += tl.load(offset + column, mask=column < WIDTH, other=0.0)[None, :]
    at = out + row[:, None].to(tl.int64) * WIDTH + column[None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=live)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _moments(
    rows: tl.tensor,
    scales: tl.tensor,
    shifts: tl.tensor,
    count: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    live = (row < count)[:, None] & (column < WIDTH)[None, :]
    x = tl.load(rows + row[:, None].to(tl.int64) * WIDTH + column[None, :], mask=live, other=0.0).to(
        tl.float32
    )
    mean = tl.sum(x, 1) / WIDTH
    centred = tl.where(live, x - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / WIDTH + eps)
    tl.store(scales + row, scale, mask=row < count)
    tl.store(shifts + row, mean * scale, mask=row < count)


def fold_moments(
    totals_RT: Tensor, squares_RT: Tensor, scale_R: Tensor, shift_R: Tensor, width: int, eps: float
) -> None:
    """As `row_moments`, from the sums of each row and of its squares over T tiles, float32 [R, T]."""
    rows, tiles = totals_RT.shape
    block = 64
    grid = (triton.cdiv(rows, block),)
    padded = triton.next_power_of_2(tiles)
    _fold_moments[grid](
        totals_RT, squares_RT, scale_R, shift_R, rows, eps, width, tiles, padded, block, num_warps=4
    )


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _fold_moments(
    totals: tl.tensor,
    squares: tl.tensor,
    scales: tl.tensor,
    shifts: tl.tensor,
    count: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    TILES: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile = tl.arange(0, PADDED)
    live = (row < count)[:, None] & (tile < TILES)[None, :]
    at = row[:, None] * TILES + tile[None, :]
    mean = tl.sum(tl.load(totals + at, mask=live, other=0.0), 1) / WIDTH
    square = tl.sum(tl.load(squares + at, mask=live, other=0.0), 1) / WIDTH
    # Rounding can leave a constant row's variance a little below zero.
    scale = tl.rsqrt(tl.maximum(square - mean * mean, 0.0) + eps)
    tl.store(scales + row, scale, mask=row < count)
    tl.store(shifts + row, mean * scale, mask=row < count)
