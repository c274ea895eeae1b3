"""QuACK epilogues of a pre-norm ViT block. Importing this needs QuACK (`pip install quack-kernels`).

A module of its own because QuACK's compile workers import it by name. QuickGELU is written
with one tanh, `x * sigmoid(1.702 x) = x/2 * (1 + tanh(0.851 x))`: QuACK 0.6.5's own `quick_gelu` has no
semantic key and can't be used in an epilogue.

Operands: `acc` is the float32 product, `b` a bias and `s` a scale per output channel, `c` the residual
stream, `q` the scale of a float8 output, `rs` and `rm` per row 1/sigma and mean/sigma, `ws` per output
channel the sum of the weights."""

from __future__ import annotations

from typing import Any

import cutlass.cute as cute
from quack.epilogue.frontend import gemm_epilogue
from quack.epilogue.ops import ColVecLoad, ColVecReduce, RowVecLoad, Scalar

_ROW = {"b": RowVecLoad("b")}
_SCALED = {"b": RowVecLoad("b"), "s": RowVecLoad("s")}
_NORMED = {"b": RowVecLoad("b"), "ws": RowVecLoad("ws"), "rs": ColVecLoad("rs"), "rm": ColVecLoad("rm")}
_MOMENTS = {"total": ColVecReduce("total"), "squares": ColVecReduce("squares", scaled=True)}


@gemm_epilogue(ops=_ROW)  # type: ignore[untyped-decorator,unused-ignore]
def linear(acc: Any, b: Any) -> dict[str, Any]:
    return {"D": acc + b}


@gemm_epilogue(ops=_ROW)  # type: ignore[untyped-decorator,unused-ignore]
def linear_residual(acc: Any, c: Any, b: Any) -> dict[str, Any]:
    return {"D": acc + b + c}


@gemm_epilogue(ops=_ROW)  # type: ignore[untyped-decorator,unused-ignore]
def linear_quick_gelu(acc: Any, b: Any) -> dict[str, Any]:
    z = acc + b
    half = z * 0.5
    return {"D": half + half * cute.math.tanh(z * 0.851, fastmath=True)}


@gemm_epilogue(ops=_SCALED)  # type: ignore[untyped-decorator,unused-ignore]
def scaled_linear(acc: Any, s: Any, b: Any) -> dict[str, Any]:
    return {"D": acc * s + b}


@gemm_epilogue(ops=_SCALED)  # type: ignore[untyped-decorator,unused-ignore]
def scaled_linear_residual(acc: Any, c: Any, s: Any, b: Any) -> dict[str, Any]:
    return {"D": acc * s + b + c}


@gemm_epilogue(ops={**_SCALED, "q": Scalar("q")})  # type: ignore[untyped-decorator,unused-ignore]
def scaled_linear_quick_gelu(acc: Any, s: Any, b: Any, q: Any) -> dict[str, Any]:
    z = acc * s + b
    half = z * 0.5
    return {"D": (half + half * cute.math.tanh(z * 0.851, fastmath=True)) * q}


@gemm_epilogue(ops=_NORMED)  # type: ignore[untyped-decorator,unused-ignore]
def normed_linear(acc: Any, rs: Any, rm: Any, ws: Any, b: Any) -> dict[str, Any]:
    return {"D": (acc * rs - rm * ws) + b}


@gemm_epilogue(ops=_NORMED)  # type: ignore[untyped-decorator,unused-ignore]
def normed_linear_quick_gelu(acc: Any, rs: Any, rm: Any, ws: Any, b: Any) -> dict[str, Any]:
    z = (acc * rs - rm * ws) + b
    half = z * 0.5
    return {"D": half + half * cute.math.tanh(z * 0.851, fastmath=True)}


@gemm_epilogue(ops=_ROW, reduces=_MOMENTS)  # type: ignore[untyped-decorator,unused-ignore]
def linear_residual_moments(acc: Any, c: Any, b: Any) -> dict[str, Any]:
    y = acc + b + c
    return {"D": y, "total": y, "squares": (y, y)}
