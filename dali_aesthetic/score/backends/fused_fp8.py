"""The fused tower with float8 products for patches: e4m3 weights and activations, a float16 residual stream.

Weights have a scale per output channel, activations one static scale a product. A normalised row can't exceed
the square root of its width; attention outputs and hidden values are measured on calibration images and given
headroom. Activations are centred before they are rounded, because e4m3's error is relative; the centre comes
back exactly, in the bias that follows. The heads are corrected for the rounding error that all images share
(`calibrate.py`). Class tokens (`class_stream.py`), patch embedding, last block and projection stay float16.

Shape legend: R rows, W width, N output and K input channels of a product."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dali_aesthetic.score.backends import folding
from dali_aesthetic.score.backends.calibration import SITES, Calibration, InputStatistics, Statistics
from dali_aesthetic.score.backends.class_stream import ClassStream
from dali_aesthetic.score.backends.folding import FoldedBlock
from dali_aesthetic.score.backends.fused import FusedBackend, FusedEncoder
from dali_aesthetic.score.backends.kernels import attention, layernorm
from dali_aesthetic.score.backends.kernels.gemm import Gemm
from dali_aesthetic.score.backends.workspace import Workspace
from dali_aesthetic.score.clip import LAYER_NORM_EPS, VisionTower
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.spec import TowerSpec

_LARGEST = 448.0
"""The largest float8_e4m3fn."""
_FLOAT8 = torch.float8_e4m3fn


def build(
    tower: VisionTower,
    heads: HeadBank,
    device: torch.device,
    batch_size: int,
    calibration: Calibration,
) -> FusedBackend:
    """A fused float8 backend with these scales.

    Raises ValueError for the calibration of another tower or other heads.
    """
    tower, heads = tower.float().to(device), heads.float().to(device)
    blocks = folding.fold_all_but_the_last(tower)
    _check_fits(calibration, tower.spec, heads)
    statistics = {key: seen.to(device) for key, seen in calibration.statistics.items()}
    rows = batch_size * (tower.spec.tokens - 1)
    with torch.inference_mode():
        products = calibration.choice.float16_products
        trunk = Float8Blocks(blocks, statistics, rows, device, products)
        encoder = FusedEncoder(tower, trunk)
    corrected = copy.deepcopy(heads)
    corrected.w_AD, corrected.b_A = calibration.w_AD.to(device), calibration.b_A.to(device)
    work = Workspace.make(tower.spec, batch_size, device, torch.float16)
    return FusedBackend(encoder, corrected, work, "fp8")


def _check_fits(calibration: Calibration, spec: TowerSpec, heads: HeadBank) -> None:
    """Raises ValueError for a calibration without scales, or of another tower or other heads."""
    if calibration.choice.precision != "fp8":
        raise ValueError(f"the calibration has no scales: its choice was {calibration.choice.describe()}")
    wide = {"qkv": spec.width, "proj": spec.width, "fc1": spec.width, "fc2": spec.mlp_width}
    wanted = {(block, site): wide[site] for block in range(spec.layers - 1) for site in SITES}
    found = {key: len(seen.total_K) for key, seen in calibration.statistics.items()}
    if found != wanted or calibration.w_AD.shape != heads.w_AD.shape:
        raise ValueError(f"the calibration was made for another encoder than {spec.name}, or for other heads")


class Float8Blocks:
    """The `fused.Trunk` with patches' products in float8, except `float16_products` (of qkv, proj, fc2)."""

    wants_normed = False

    def __init__(
        self,
        blocks: Sequence[FoldedBlock],
        statistics: Statistics,
        rows: int,
        device: torch.device,
        float16_products: Sequence[str] = (),
    ) -> None:
        self._heads = blocks[0].heads
        self._blocks = [
            _Float8Block(block, statistics, index, float16_products) for index, block in enumerate(blocks)
        ]
        self._apart = ClassStream(blocks, [block.shifts for block in self._blocks])
        width, hidden = blocks[0].q.shape[1], blocks[0].fc1.shape[0]
        self._narrow_RW = torch.empty(rows, width, device=device, dtype=_FLOAT8)
        self._wide_qkv, self._wide_proj = "qkv" in float16_products, "proj" in float16_products
        self._hidden_RF: Tensor | None = None
        if "fc2" not in float16_products:
            self._hidden_RF = torch.empty(rows, hidden, device=device, dtype=_FLOAT8)

    def __call__(self, work: Workspace) -> None:
        h, class_NW = work.split(work.tokens_RW)
        rows, width = h.shape
        narrow, wide = self._narrow_RW[:rows], work.normed_RW[:rows]
        normed = wide if self._wide_qkv else narrow
        attended = wide if self._wide_proj else narrow
        for index, block in enumerate(self._blocks):
            layernorm.normalize_rows(h, normed, LAYER_NORM_EPS, block.qkv_in.scale, block.qkv_in.offset_K)
            block.qkv(normed, packed := work.scratch(rows, 3 * width))
            self._apart(index, class_NW, partial(self._attend, packed, attended, block.proj_in.scale))
            block.proj(attended, h, h)
            layernorm.normalize_rows(h, narrow, LAYER_NORM_EPS, block.fc1_in.scale, block.fc1_in.offset_K)
            hidden = self._hidden_RF
            hidden = work.scratch(rows, block.fc1.channels_out) if hidden is None else hidden[:rows]
            block.fc1(narrow, hidden)
            block.fc2(hidden, h, h)
        layernorm.normalize_rows(work.tokens_RW, work.normed_RW, LAYER_NORM_EPS)

    def _attend(
        self, packed: Tensor, attended: Tensor, scale: float, qkv_class: Tensor, attended_class: Tensor
    ) -> None:
        attention.attend(packed, qkv_class, attended, attended_class, self._heads, scale)


class _Float8Block:
    """The products of a block, with the centres folded into the biases."""

    def __init__(
        self, block: FoldedBlock, statistics: Statistics, index: int, float16_products: Sequence[str]
    ) -> None:
        seen = {site: statistics[index, site] for site in SITES}
        unchanged = {
            site: _Quantizer.of(torch.zeros_like(seen[site].total_K), 1.0) for site in float16_products
        }
        self.qkv_in = unchanged.get("qkv") or _Quantizer.normalized(seen["qkv"])
        self.fc1_in = _Quantizer.normalized(seen["fc1"])
        self.proj_in = unchanged.get("proj") or _Quantizer.calibrated(seen["proj"], centred=True)
        # Not centred: most hidden values are near zero, where e4m3 is finest.
        fc2_in = unchanged.get("fc2") or _Quantizer.calibrated(seen["fc2"], centred=False)
        qkv_centre, proj_centre = self.qkv_in.centre_K.double(), self.proj_in.centre_K.double()
        # Values are centred by their bias, as attention weights add up to one. Keys need no bias, but then
        # the class tokens' keys must lack the same: `shifts`.
        self.shifts = (block.k @ qkv_centre, proj_centre)
        q_bias, v_bias = block.q_bias + block.q @ qkv_centre, block.v @ qkv_centre - proj_centre
        qkv_bias = torch.cat([q_bias, torch.zeros_like(v_bias), v_bias])
        proj_bias = block.proj_bias + block.proj @ proj_centre
        fc1_bias = block.fc1_bias + block.fc1 @ self.fc1_in.centre_K.double()
        self.qkv = (
            Gemm("linear", block.qkv.half(), None, b=qkv_bias.float())
            if "qkv" in float16_products
            else _gemm("scaled_linear", block.qkv, qkv_bias, self.qkv_in)
        )
        self.fc1 = _gemm("scaled_linear_quick_gelu", block.fc1, fc1_bias, self.fc1_in, fc2_in.scale)
        self.proj, self.fc2 = (
            Gemm("linear_residual", weight.half(), None, b=bias.float())
            if site in float16_products
            else _gemm("scaled_linear_residual", weight, bias, given)
            for site, weight, bias, given in (
                ("proj", block.proj, proj_bias, self.proj_in),
                ("fc2", block.fc2, block.fc2_bias, fc2_in),
            )
        )


def _gemm(
    epilogue: str, weight_NK: Tensor, bias_N: Tensor, given: _Quantizer, out_scale: float | None = None
) -> Gemm:
    quantized, scale_N = _quantize_weight(weight_NK)
    operands: dict[str, Tensor | float] = {"b": bias_N.float(), "s": scale_N / given.scale}
    if out_scale is not None:
        operands["q"] = out_scale
    return Gemm(epilogue, quantized, None, **operands)


@dataclass(frozen=True, slots=True)
class _Quantizer:
    """Rounds a product's input to float8 as `(x - centre) * scale`, computed as `x * scale + offset`."""

    centre_K: Tensor
    scale: float
    offset_K: Tensor

    @classmethod
    def of(cls, centre_K: Tensor, scale: float) -> _Quantizer:
        return cls(centre_K, scale, -centre_K * scale)

    @classmethod
    def normalized(cls, seen: InputStatistics) -> _Quantizer:
        """For a LayerNorm's output, which is bounded."""
        bound = math.sqrt(len(seen.total_K)) + float(seen.centre_K.abs().max())
        return cls.of(seen.centre_K, _LARGEST / bound)

    @classmethod
    def calibrated(cls, seen: InputStatistics, centred: bool) -> _Quantizer:
        """For any other input, whose range was measured."""
        if centred:
            return cls.of(seen.centre_K, _calibrated_scale(seen.peak))
        peak = float(torch.maximum(seen.largest_K, -seen.least_K).max())
        return cls.of(torch.zeros_like(seen.total_K), _calibrated_scale(peak))


def _quantize_weight(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn [N, K] and float32 [N] with `weight = quantized * scale`, each channel's peak at 448."""
    scale_N = weight_NK.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
    return (weight_NK / scale_N[:, None]).to(torch.float8_e4m3fn), scale_N.float()


def _calibrated_scale(peak: float, headroom: float = 2.0) -> float:
    """The factor of an input whose calibration samples reached `peak`.

    Headroom costs almost no precision: e4m3 has 15 binades.
    """
    return _LARGEST / (max(peak, 1e-6) * headroom)
