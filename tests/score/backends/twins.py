"""The fused backends on a CPU: each kernel replaced by what it computes, in plain torch.

Rounding to float8 and float16 happens where the kernels do it, so what is seen here of scales, calibration
and the gate is what a GPU would show, but for the order of sums.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dali_aesthetic.score.backends import class_stream, fits, fused, fused_fp8
from dali_aesthetic.score.backends.folding import PIXEL_OFFSET, PIXEL_STEP
from dali_aesthetic.score.backends.kernels import attention, class_block, embed, gemm, layernorm
from dali_aesthetic.score.spec import TowerSpec

FLOAT8_LIMIT = 448.0
SPEC = TowerSpec(
    name="tiny", image_size=32, patch_size=8, width=128, layers=3, heads=2, mlp_width=256, embed_dim=48,
    quick_gelu=True,
)  # fmt: skip
"""A tower that is small enough for a CPU, with two float8 blocks."""


class TorchGemm:
    """What `kernels.gemm.Gemm` computes, in float32 torch."""

    def __init__(self, epilogue: str, weight_NK: Tensor, tile: Any = None, **operands: Any) -> None:
        self.epilogue, self.weight, self.operands = epilogue, weight_NK.float(), operands
        self.channels_out, self.tile = weight_NK.shape[0], gemm.Tile(128, 16, 1, 1)

    def __call__(
        self, rows_MK: Tensor, out_MN: Tensor, residual_MN: Tensor | None = None, **given: Tensor
    ) -> None:
        y = rows_MK.float() @ self.weight.T
        if "normed" in self.epilogue:
            y = y * given["rs"].T - given["rm"].T * self.operands["ws"]
        if "scaled" in self.epilogue:
            y = y * self.operands["s"]
        y = y + self.operands["b"]
        if "quick_gelu" in self.epilogue:
            y = y * torch.sigmoid(1.702 * y) * self.operands.get("q", 1.0)
        if residual_MN is not None:
            y = y + residual_MN.float()
        if "moments" in self.epilogue:
            parts = y.view(len(y), -1, self.tile.n)
            given["total"].copy_(parts.sum(-1))
            given["squares"].copy_(parts.square().sum(-1))
        store(y, out_MN)


def store(values: Tensor, out: Tensor) -> None:
    """Rounded once to the dtype of `out`; float8 saturates."""
    out.copy_(values.clamp(-FLOAT8_LIMIT, FLOAT8_LIMIT) if out.dtype == torch.float8_e4m3fn else values)


def attend(
    qkv_R3W: Tensor,
    qkv_class_N3W: Tensor,
    out_RW: Tensor,
    out_class_NW: Tensor,
    heads: int,
    out_scale: float = 1.0,
) -> None:
    patches, classes = attention.reference(qkv_R3W, qkv_class_N3W, heads)
    store(patches * out_scale, out_RW)
    store(classes, out_class_NW)


def normalize_rows(
    rows_RW: Tensor,
    out_RW: Tensor,
    eps: float,
    out_scale: float = 1.0,
    offset_W: Tensor | None = None,
    addend_W: Tensor | None = None,
) -> None:
    x = rows_RW.float() if addend_W is None else rows_RW.float() + addend_W
    y = torch.nn.functional.layer_norm(x, x.shape[1:], eps=eps) * out_scale
    store(y if offset_W is None else y + offset_W, out_RW)


def row_moments(rows_RW: Tensor, scale_R: Tensor, shift_R: Tensor, eps: float) -> None:
    variance, mean = torch.var_mean(rows_RW.float(), 1, correction=0)
    scale_R.copy_((variance + eps).rsqrt())
    shift_R.copy_(mean * scale_R)


def fold_moments(
    totals_RT: Tensor, squares_RT: Tensor, scale_R: Tensor, shift_R: Tensor, width: int, eps: float
) -> None:
    mean = totals_RT.sum(1) / width
    scale_R.copy_((squares_RT.sum(1) / width - mean**2).clamp_min(0).add(eps).rsqrt())
    shift_R.copy_(mean * scale_R)


def patchify(images_NHWC: Tensor, out_RK: Tensor, patch_size: int) -> None:
    count, side = len(images_NHWC), images_NHWC.shape[1] // patch_size
    patches = (
        images_NHWC.view(count, side, patch_size, side, patch_size, 3)
        .transpose(2, 3)
        .reshape(len(out_RK), -1)
    )
    out_RK.zero_()
    out_RK[:, : patches.shape[1]] = (patches.float() - PIXEL_OFFSET) / PIXEL_STEP


def assemble(
    embedded_RW: Tensor,
    positions_LW: Tensor,
    gain_W: Tensor,
    bias_W: Tensor,
    tokens: tuple[Tensor, Tensor],
    normed: tuple[Tensor, Tensor] | None,
    eps: float,
) -> None:
    width = len(gain_W)
    embedded_NPW = embedded_RW.float().view(len(tokens[1]), -1, width) + positions_LW[1:]
    classes = positions_LW[:1].expand(len(tokens[1]), -1)
    for index, rows in enumerate((embedded_NPW.flatten(0, 1), classes)):
        tokens[index].copy_(torch.nn.functional.layer_norm(rows, (width,), gain_W, bias_W, eps))
        if normed is not None:
            normed[index].copy_(torch.nn.functional.layer_norm(tokens[index].float(), (width,), eps=eps))


def class_attention(asks_NHW: Tensor, patches_RW: Tensor, class_NW: Tensor, out_NHW: Tensor) -> None:
    tokens_NLW = torch.cat(
        [patches_RW.view(len(class_NW), -1, class_NW.shape[1]), class_NW[:, None]], 1
    ).float()
    weights = torch.softmax(asks_NHW.float() @ tokens_NLW.mT * 0.6931471805599453, -1)
    out_NHW.copy_(weights @ tokens_NLW)


def install(patch: pytest.MonkeyPatch) -> None:
    """Every kernel replaced, and nothing refused for want of a GPU."""
    products(patch)
    patch.setattr(attention, "attend", attend)
    for name, twin in (
        ("normalize_rows", normalize_rows),
        ("row_moments", row_moments),
        ("fold_moments", fold_moments),
    ):
        patch.setattr(layernorm, name, twin)
    patch.setattr(embed, "patchify", patchify)
    patch.setattr(embed, "assemble", assemble)
    patch.setattr(class_block, "class_attention", class_attention)
    patch.setattr(fits, "why_not_quack", lambda device: "")
    patch.setattr(fits, "why_not_triton", lambda spec, device: "")
    patch.setattr(fits, "_check_device", lambda backend, precision, device: None)


def products(patch: pytest.MonkeyPatch) -> None:
    """QuACK's products replaced, and nothing else."""
    patch.setattr(fused, "Gemm", TorchGemm)
    patch.setattr(fused_fp8, "Gemm", TorchGemm)
    patch.setattr(class_stream, "Gemm", TorchGemm)
