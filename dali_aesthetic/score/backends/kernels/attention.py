"""Attention for a power of two of patches and one class token, each key and value read once.

One program per image and head. The patch keys are one tile and the class key joins the softmax as a
rank-one correction, so no key is padding; the class query is the N side of a transposed product, so it
costs an eighth of a query tile. Reads packed qkv buffers and writes rows of heads: no transposes.
Patches and class tokens have buffers of their own, which may be of different dtypes.

Shape legend: N images, R = N * patches rows, W = heads * size columns.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

QUERY_ROWS = 64
"""Queries of one tile: the M of one warp group's matrix instruction."""

_CLASS_COLUMNS = 16
"""Equal copies of the class query: the fewest columns that `tl.dot` takes."""


def attend(
    qkv_R3W: Tensor,
    qkv_class_N3W: Tensor,
    out_RW: Tensor,
    out_class_NW: Tensor,
    heads: int,
    out_scale: float = 1.0,
) -> None:
    """`out = softmax2(q k^T) v` for each image and head, of patches and of class tokens; q carries
    `folding.softmax_scale`.

    Both qkv are float16 or bfloat16, contiguous, columns q, k, v, each heads * size. `out` has the dtype of
    its qkv; that of the patches may be float8_e4m3fn, to which `out_scale` times the result saturates.
    """
    images, width = qkv_class_N3W.shape[0], qkv_class_N3W.shape[1] // 3
    size, patches = width // heads, qkv_R3W.shape[0] // images
    rows = min(QUERY_ROWS, patches)
    _attend[(images * heads,)](
        qkv_class_N3W,
        out_RW,
        out_class_NW,
        TensorDescriptor.from_tensor(qkv_R3W, [patches, size]),
        TensorDescriptor.from_tensor(qkv_R3W, [rows, size]),
        TensorDescriptor.from_tensor(out_RW, [rows, size]),
        out_scale,
        heads,
        size,
        rows,
        patches,
        _CLASS_COLUMNS,
        num_warps=4,
    )


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _patch_queries(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, k_class: tl.tensor, v_class: tl.tensor
) -> tl.tensor:
    """Outputs [rows, size], float32, of a tile of queries."""
    s = tl.dot(q, k.T)
    s_class = tl.sum(q.to(tl.float32) * k_class[None, :], 1)
    top = tl.maximum(tl.max(s, 1), s_class)
    p = tl.exp2(s - top[:, None])
    p_class = tl.exp2(s_class - top)
    total = tl.sum(p, 1) + p_class
    o = tl.dot(p.to(q.dtype), v) + p_class[:, None] * v_class[None, :]
    return o * (1.0 / total)[:, None]


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _class_query(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, k_class: tl.tensor, v_class: tl.tensor, COLUMNS: tl.constexpr
) -> tl.tensor:
    """Output [size], float32, of one query."""
    columns = tl.broadcast_to(q[:, None], [q.shape[0], COLUMNS])
    is_first = (tl.arange(0, COLUMNS) == 0)[None, :]
    s = tl.sum(tl.where(is_first, tl.dot(k.to(q.dtype), columns), 0.0), 1)
    s_class = tl.sum(q.to(tl.float32) * k_class, 0)
    top = tl.maximum(tl.max(s, 0), s_class)
    p = tl.exp2(s - top)
    p_class = tl.exp2(s_class - top)
    # Not a second product: with 16 columns on its N side Triton 3.6 compiles that to a wrong one on sm_90.
    o = tl.sum(p[:, None] * v.to(tl.float32), 0) + p_class * v_class
    return o / (tl.sum(p, 0) + p_class)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _attend(
    qkv_class: tl.tensor,
    out: tl.tensor,
    out_class: tl.tensor,
    keys: tl.tensor,
    queries: tl.tensor,
    answers: tl.tensor,
    out_scale: tl.tensor,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    PATCHES: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    image, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    width: tl.constexpr = HEADS * SIZE
    row, d = image * PATCHES, head * SIZE + tl.arange(0, SIZE)
    base = qkv_class + image.to(tl.int64) * (3 * width)
    k = keys.load([row, width + head * SIZE])
    v = keys.load([row, 2 * width + head * SIZE])
    k_class = tl.load(base + width + d).to(tl.float32)
    v_class = tl.load(base + 2 * width + d).to(tl.float32)
    # The class query first: after the loop it would spill registers.
    o_class = _class_query(tl.load(base + d), k, v, k_class, v_class, COLUMNS)
    tl.store(out_class + image.to(tl.int64) * width + d, o_class.to(out_class.dtype.element_ty))
    for tile in tl.range(0, PATCHES // ROWS, num_stages=2):
        at = row + tile * ROWS
        o = _patch_queries(queries.load([at, head * SIZE]), k, v, k_class, v_class) * out_scale
        answers.store([at, head * SIZE], o.to(out.dtype.element_ty))


def reference(qkv_R3W: Tensor, qkv_class_N3W: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """The same in plain torch, float32 [R, W] and [N, W]: the reference of tests and benchmarks."""
    images, columns = qkv_class_N3W.shape
    tokens = torch.cat([qkv_R3W.float().view(images, -1, columns), qkv_class_N3W.float()[:, None]], dim=1)
    q, k, v = tokens.view(*tokens.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-1, -2) * math.log(2), dim=-1)
    attended_NLW = (weights @ v).transpose(1, 2).flatten(2)
    return attended_NLW[:, :-1].flatten(0, 1), attended_NLW[:, -1]
