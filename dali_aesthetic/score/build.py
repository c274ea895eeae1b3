"""From names to a scorer on a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dali_aesthetic.score.clip import VisionTower
from dali_aesthetic.score.fast.backend import (
    build_backend,
    choose_backend,
    default_batch,
    resolve_backend,
    takes_any_size,
)
from dali_aesthetic.score.fast.calibration import Calibration
from dali_aesthetic.score.fast.slices import SlicedBackend
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.scorer import Scorer
from dali_aesthetic.score.spec import spec_of
from dali_aesthetic.score.weights import ResolvedFile, load_head, load_tower


def build_scorer(
    *,
    encoder: str,
    weights: str,
    heads: Sequence[str],
    model_dir: Path | None,
    device: torch.device,
    precision: str = "auto",
    backend: str = "auto",
    batch_size: int | None = None,
    keep_embeddings: bool = False,
    calibration: Calibration | None = None,
) -> tuple[Scorer, list[ResolvedFile]]:
    """A scorer, and the weights in use: the tower's first, then one for each head in order.

    Without a `batch_size` the scorer has the one that suits its backend. `calibration` holds the
    scales that fp8 needs.

    Raises ValueError for names and files that don't fit together or the device, WeightsUnavailable for
    published weights that can't be had.
    """
    # Whatever can be wrong is found before gigabytes are downloaded or a tower is built: cheapest first.
    resolve_backend(backend, precision, device)
    tower, bank, files = load_model(encoder, weights, heads, model_dir)
    backend, precision = choose_backend(backend, precision, device, tower.spec)
    batch_size = batch_size or default_batch(backend, device)
    built = build_backend(backend, tower, bank, device, precision, batch_size, calibration)
    sliced = device.type == "cpu" and takes_any_size(backend)
    if sliced:
        built = SlicedBackend(built, torch.get_num_threads())
    scorer = Scorer(built, device, batch_size, keep_embeddings, padded=not sliced)
    return scorer, files


def load_model(
    encoder: str, weights: str, heads: Sequence[str], model_dir: Path | None
) -> tuple[VisionTower, HeadBank, list[ResolvedFile]]:
    """Tower and heads, float32 on the CPU, and the files they are from: the tower's, then each head's.

    Raises as `build_scorer`.
    """
    embed_dim = spec_of(encoder).embed_dim
    loaded = [load_head(head, encoder, embed_dim, model_dir) for head in heads]
    bank = HeadBank([head for head, _ in loaded], embed_dim)
    tower, tower_file = load_tower(encoder, weights, model_dir)
    return tower, bank, [tower_file, *(file for _, file in loaded)]
