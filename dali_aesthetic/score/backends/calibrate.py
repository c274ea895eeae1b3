"""From images to float8 statistics, corrected heads and the choice of the gate.

The error that rounded weights cause in all images alike is removed from the affine heads, by a ridge
regression on the calibration images.

Shape legend: N images, R rows, K input channels of a product, D embedding, A affine heads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dali_aesthetic.score.backends.calibration import Calibration, Choice, InputStatistics, Statistics
from dali_aesthetic.score.backends.class_stream import ClassStream
from dali_aesthetic.score.backends.fits import why_not_fused
from dali_aesthetic.score.backends.folding import fold_all_but_the_last
from dali_aesthetic.score.backends.fused import DeferredNorms, FusedEncoder, NormPasses
from dali_aesthetic.score.backends.fused_fp8 import Float8Blocks
from dali_aesthetic.score.backends.workspace import Workspace
from dali_aesthetic.score.clip import VisionTower
from dali_aesthetic.score.gate import Candidate, GateLimits, Scores, try_in_turn
from dali_aesthetic.score.head import HeadBank

LADDER: tuple[tuple[str, ...], ...] = (
    (),
    ("proj",),
    ("qkv", "proj"),
    ("proj", "fc2"),
    ("qkv", "proj", "fc2"),
)
"""Products that stay in float16, in the order in which the gate tries them: cheapest first, by the products'
own times (the cost to a whole run was not measured). After all of them it tries bf16."""
RIDGE = 1e-2
"""Strength of the heads' correction, in units of the embeddings' mean variance."""
_BATCH = 256


@torch.inference_mode()
def calibrate(
    tower: VisionTower,
    heads: HeadBank,
    device: torch.device,
    calibration_NHWC: Tensor,
    check_NHWC: Tensor,
    cuts: Mapping[str, float],
    limits: GateLimits,
    made_for: Mapping[str, Any],
) -> Calibration:
    """Statistics from the calibration images, and the fastest precision that passes the gate on the others.

    The images are uint8 [N, S, S, 3] on the device, the cuts raw scores of the first head. fp8 is tried as
    `LADDER` says, then bf16; where none passes the choice is fp16. Raises ValueError where fp8
    can't run.
    """
    if reason := why_not_fused(tower.spec, device, "fp8"):
        raise ValueError(f"precision fp8 can't run here: {reason}; use --precision fp16, or auto")
    trial = _TrialEncoder(tower, heads, device)
    statistics, reference_ND = observe(trial.encoder, calibration_NHWC, trial.work)
    expected = trial.scores(trial.embed(check_NHWC), trial.heads)
    made: list[HeadBank] = []

    def candidates() -> Iterator[Candidate]:
        for products in LADDER:
            trial.to_float8(statistics, products)
            made.append(corrected_heads(trial.heads, trial.embed(calibration_NHWC), reference_ND))
            yield "fp8", products, lambda: trial.scores(trial.embed(check_NHWC), made[-1])
        trial.to_bfloat16()
        yield "bf16", (), lambda: trial.scores(trial.embed(check_NHWC), trial.heads)

    trials = try_in_turn(expected, candidates(), cuts, limits)
    last = trials[-1]
    choice = Choice(
        precision="fp16" if last.failed else last.precision,
        made_for=made_for,
        calibration_images=len(calibration_NHWC),
        check_images=len(check_NHWC),
        float16_products=() if last.failed else last.float16_products,
        trials=trials,
    )
    if choice.precision != "fp8":
        return Calibration(choice=choice)
    return Calibration(choice=choice, statistics=statistics, w_AD=made[-1].w_AD, b_A=made[-1].b_A)


class _TrialEncoder:
    """A float16 encoder, which can be changed to float8 or bfloat16 for a trial."""

    def __init__(self, tower: VisionTower, heads: HeadBank, device: torch.device) -> None:
        self.tower, self.heads = tower.float().to(device), heads.float().to(device)
        self.blocks = fold_all_but_the_last(self.tower)
        self.work = Workspace.make(tower.spec, _BATCH, device, torch.float16)
        self.encoder = FusedEncoder(self.tower, NormPasses(self.blocks, torch.float16))
        self.device = device

    def embed(self, images_NHWC: Tensor) -> Tensor:
        """Embeddings [N, D] of images on the device, in the present precision."""
        return _embed(self.encoder, images_NHWC, self.work)

    def scores(self, embeddings_ND: Tensor, heads: HeadBank) -> Scores:
        """Scores of the first head, on the host."""
        found: Scores = heads(embeddings_ND)[:, 0].cpu().numpy()
        return found

    def to_float8(self, statistics: Statistics, float16_products: Sequence[str]) -> None:
        rows = self.work.images * (self.tower.spec.tokens - 1)
        self.encoder.trunk = Float8Blocks(self.blocks, statistics, rows, self.device, float16_products)

    def to_bfloat16(self) -> None:
        dtype, spec = torch.bfloat16, self.tower.spec
        self.work = Workspace.make(spec, self.work.images, self.device, dtype)
        rows = self.work.images * (spec.tokens - 1)
        self.encoder.trunk = DeferredNorms(
            self.blocks, rows, self.device, dtype, apart=ClassStream(self.blocks)
        )


def observe(encoder: FusedEncoder, images_NHWC: Tensor, work: Workspace) -> tuple[Statistics, Tensor]:
    """Statistics of the inputs of the patches' products in a float16 encoder with `NormPasses`, and the
    embeddings [N, D] of the images."""
    assert isinstance(encoder.trunk, NormPasses)
    seen: dict[tuple[int, str], InputStatistics] = {}

    def take(block: int, site: str, rows_RK: Tensor) -> None:
        now = InputStatistics.of(rows_RK)
        if (block, site) in seen:
            seen[block, site].add(now)
        else:
            seen[block, site] = now

    encoder.trunk.observe = take
    embeddings_ND = _embed(encoder, images_NHWC, work)
    encoder.trunk.observe = None
    return seen, embeddings_ND


def _embed(encoder: FusedEncoder, images_NHWC: Tensor, work: Workspace) -> Tensor:
    """Embeddings [N, D] of any number of images on the device."""
    parts = []
    for part in torch.split(images_NHWC, work.images):
        here = work.first(len(part))
        encoder.patchify(part, here)
        parts.append(encoder.encode(here))
    return torch.cat(parts)


def corrected_heads(heads: HeadBank, embeddings_ND: Tensor, reference_ND: Tensor) -> HeadBank:
    """Heads that give float8 embeddings scores as close as possible to those of the float16 ones.

    By ridge regression of the difference on the unit embeddings; heads that aren't affine are unchanged.
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
