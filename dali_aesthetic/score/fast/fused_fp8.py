"""The fused tower with float8 products: e4m3 weights and activations, a float16 residual stream.

Every scale is static. A normalised row can't exceed the square root of its width; attention outputs and
hidden values are measured on calibration images and given headroom. Activations are centred before they
are rounded (what is subtracted comes back in the bias that follows, exactly), because e4m3's error is
relative. What the rounded weights do to all images alike is taken out of the affine heads by a ridge
regression on the calibration images. Patch embedding, last block and projection stay float16.

Shape legend: N images, R rows, W width, K input channels of a product, D embedding, A affine heads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dali_aesthetic.score.clip import LAYER_NORM_EPS, Block, VisionTower
from dali_aesthetic.score.fast import folding, fused
from dali_aesthetic.score.fast.folding import FoldedBlock
from dali_aesthetic.score.fast.fused import FusedBackend, FusedEncoder, NormPasses, Workspace
from dali_aesthetic.score.fast.kernels.float8 import LARGEST, calibrated_scale, quantize_weight
from dali_aesthetic.score.fast.kernels.gemm import Gemm
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.spec import TowerSpec

CALIBRATION_IMAGES = 512
RIDGE = 1e-2
"""Strength of the heads' correction, in units of the embeddings' mean variance."""

_FLOAT8 = torch.float8_e4m3fn
_SITES = ("qkv", "proj", "fc1", "fc2")


def refusal(spec: TowerSpec, device: torch.device) -> str:
    """Why this backend can't run `spec` on `device`; empty where it can."""
    return fused.refusal(spec, device, "fp16")


@dataclass(slots=True)
class Seen:
    """What went into one product: per channel the sum, the least and the largest, float32 [K]."""

    rows: int
    total_K: Tensor
    least_K: Tensor
    largest_K: Tensor

    @classmethod
    def of(cls, rows_RK: Tensor) -> Seen:
        """The statistics of a float16 batch."""
        least, largest = torch.aminmax(rows_RK, dim=0)
        return cls(len(rows_RK), rows_RK.sum(0, dtype=torch.float32), least.float(), largest.float())

    def add(self, other: Seen) -> None:
        """Takes another batch's in."""
        self.rows += other.rows
        self.total_K += other.total_K
        self.least_K = torch.minimum(self.least_K, other.least_K)
        self.largest_K = torch.maximum(self.largest_K, other.largest_K)

    @property
    def centre_K(self) -> Tensor:
        """The mean of each channel."""
        return self.total_K / self.rows

    @property
    def peak(self) -> float:
        """The largest distance from the centre."""
        return float(torch.maximum(self.largest_K - self.centre_K, self.centre_K - self.least_K).max())


Calibration = Mapping[tuple[int, str], Seen]
"""By block and product."""


def observe(encoder: FusedEncoder, images_NHWC: Tensor, work: Workspace) -> tuple[Calibration, Tensor]:
    """What the products of a float16 encoder with `NormPasses` see of these images, and its embeddings."""
    assert isinstance(encoder.middle, NormPasses)
    seen: dict[tuple[int, str], Seen] = {}

    def take(block: int, site: str, rows_RK: Tensor) -> None:
        now = Seen.of(rows_RK)
        if (block, site) in seen:
            seen[block, site].add(now)
        else:
            seen[block, site] = now

    encoder.middle.observe = take
    embeddings = []
    for start in range(0, len(images_NHWC), work.images):
        part = images_NHWC[start : start + work.images]
        here = work.first(len(part))
        encoder.patchify(part, here)
        embeddings.append(encoder.encode(here))
    encoder.middle.observe = None
    return seen, torch.cat(embeddings)


@dataclass(frozen=True, slots=True)
class _Input:
    """How a product's input is rounded: `(x - centre) * scale`."""

    centre_K: Tensor
    scale: float
    offset_K: Tensor

    @classmethod
    def of(cls, centre_K: Tensor, scale: float) -> _Input:
        """With the offset that goes with them: `x * scale + offset`."""
        return cls(centre_K, scale, -centre_K * scale)

    @classmethod
    def normalized(cls, seen: Seen) -> _Input:
        """For a LayerNorm's output, which is bounded."""
        bound = math.sqrt(len(seen.total_K)) + float(seen.centre_K.abs().max())
        return cls.of(seen.centre_K, LARGEST / bound)

    @classmethod
    def calibrated(cls, seen: Seen, centred: bool) -> _Input:
        """For anything else."""
        if centred:
            return cls.of(seen.centre_K, calibrated_scale(seen.peak))
        peak = float(torch.maximum(seen.largest_K, -seen.least_K).max())
        return cls.of(torch.zeros_like(seen.total_K), calibrated_scale(peak))


class Float8Blocks:
    """Blocks with all four products in float8. See `fused.Middle`."""

    wants_normed = False

    def __init__(
        self, blocks: Sequence[FoldedBlock], calibration: Calibration, rows: int, device: torch.device
    ) -> None:
        self._heads = blocks[0].heads
        self._blocks = [_Float8Block(block, calibration, index) for index, block in enumerate(blocks)]
        width, hidden = blocks[0].q.shape[1], blocks[0].fc1.shape[0]
        self._narrow_RW = torch.empty(rows, width, device=device, dtype=_FLOAT8)
        self._hidden_RF = torch.empty(rows, hidden, device=device, dtype=_FLOAT8)

    def __call__(self, work: Workspace) -> None:
        from dali_aesthetic.score.fast.kernels.attention import attend
        from dali_aesthetic.score.fast.kernels.layernorm import normalize_rows

        h = work.tokens_RW
        rows, width = h.shape
        narrow, hidden = self._narrow_RW[:rows], self._hidden_RF[:rows]
        for block in self._blocks:
            normalize_rows(h, narrow, LAYER_NORM_EPS, block.qkv_in.scale, block.qkv_in.offset_K)
            block.qkv(narrow, packed := work.scratch(3 * width))
            attend(packed, narrow, work.images, self._heads, block.proj_in.scale)
            block.proj(narrow, h, h)
            normalize_rows(h, narrow, LAYER_NORM_EPS, block.fc1_in.scale, block.fc1_in.offset_K)
            block.fc1(narrow, hidden)
            block.fc2(hidden, h, h)
        normalize_rows(h, work.normed_RW, LAYER_NORM_EPS)


class _Float8Block:
    """One block's products, with the centres folded into the biases."""

    def __init__(self, block: FoldedBlock, calibration: Calibration, index: int) -> None:
        seen = {site: calibration[index, site] for site in _SITES}
        self.qkv_in, self.fc1_in = _Input.normalized(seen["qkv"]), _Input.normalized(seen["fc1"])
        self.proj_in = _Input.calibrated(seen["proj"], centred=True)
        # Not centred: most hidden values are near zero, where e4m3 is finest.
        fc2_in = _Input.calibrated(seen["fc2"], centred=False)
        qkv_centre, proj_centre = self.qkv_in.centre_K.double(), self.proj_in.centre_K.double()
        # Values are centred by their bias, as the attention's weights add up to one; keys need no bias.
        q_bias, v_bias = block.q_bias + block.q @ qkv_centre, block.v @ qkv_centre - proj_centre
        qkv_bias = torch.cat([q_bias, torch.zeros_like(v_bias), v_bias])
        proj_bias = block.proj_bias + block.proj @ proj_centre
        fc1_bias = block.fc1_bias + block.fc1 @ self.fc1_in.centre_K.double()
        self.qkv = _gemm("scaled_linear", block.qkv, qkv_bias, self.qkv_in)
        self.proj = _gemm("scaled_linear_residual", block.proj, proj_bias, self.proj_in)
        self.fc1 = _gemm("scaled_linear_quick_gelu", block.fc1, fc1_bias, self.fc1_in, fc2_in.scale)
        self.fc2 = _gemm("scaled_linear_residual", block.fc2, block.fc2_bias, fc2_in)


def _gemm(
    epilogue: str, weight_NK: Tensor, bias_N: Tensor, given: _Input, out_scale: float | None = None
) -> Gemm:
    quantized, scale_N = quantize_weight(weight_NK)
    operands: dict[str, Tensor | float] = {"b": bias_N.float(), "s": scale_N / given.scale}
    if out_scale is not None:
        operands["q"] = out_scale
    return Gemm(epilogue, quantized, None, **operands)


def corrected_heads(heads: HeadBank, embeddings_ND: Tensor, reference_ND: Tensor) -> HeadBank:
    """Heads that give these float8 embeddings the scores that their float16 ones get, as near as may be.

    Ridge regression of the difference on the unit embeddings; heads that aren't affine stay as they are.
    """
    corrected = copy.deepcopy(heads)
    count = len(heads.b_A)
    if not count:
        return corrected
    unit_ND = F.normalize(embeddings_ND.double(), dim=-1)
    reference = F.normalize(reference_ND.double(), dim=-1)
    w_AD = heads.w_AD.double()
    missing_NA = reference @ w_AD.T - unit_ND @ w_AD.T
    mean_D, mean_A = unit_ND.mean(0), missing_NA.mean(0)
    centred = unit_ND - mean_D
    gram = centred.T @ centred
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    change_DA = torch.linalg.solve(gram, centred.T @ (missing_NA - mean_A))
    corrected.w_AD += change_DA.T.float()
    corrected.b_A += (mean_A - mean_D @ change_DA).float()
    return corrected


def build(
    tower: VisionTower,
    heads: HeadBank,
    device: torch.device,
    batch_size: int,
    calibration_NHWC: Tensor,
) -> FusedBackend:
    """A fused float8 backend calibrated on these pixels. Raises ValueError where `refusal` gives a reason."""
    if reason := refusal(tower.spec, device):
        raise ValueError(f"backend fused can't run fp8 here: {reason}")
    tower, heads = tower.float().to(device), heads.float().to(device)
    blocks = [folding.fold_block(block) for block in tower.blocks[:-1] if isinstance(block, Block)]
    work = Workspace.make(tower.spec, batch_size, device, torch.float16)
    with torch.inference_mode():
        encoder = FusedEncoder(tower, NormPasses(blocks, torch.float16), torch.float16)
        calibration, reference_ND = observe(encoder, calibration_NHWC.to(device), work)
        encoder.middle = Float8Blocks(blocks, calibration, batch_size * tower.spec.tokens, device)
        backend = FusedBackend(encoder, heads, work, "fp8")
        embeddings = [backend.embed(part) for part in torch.split(calibration_NHWC.to(device), batch_size)]
        backend.set_heads(corrected_heads(heads, torch.cat(embeddings), reference_ND))
    return backend
