"""Batches of one size, for backends whose code is compiled for it: padded, and the padding cut off again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

Scored = tuple[Tensor, Tensor]
"""Scores [N, H] and embeddings [N, D]."""


def in_batches(score: Callable[[Tensor], Scored], images_NHWC: Tensor, batch_size: int) -> Scored:
    """`score` on contiguous batches of exactly `batch_size` images, its results for the given ones."""
    parts = [_padded(score, part, batch_size) for part in torch.split(images_NHWC, batch_size)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([scores for scores, _ in parts]), torch.cat([embeddings for _, embeddings in parts])


def _padded(score: Callable[[Tensor], Scored], part_NHWC: Tensor, batch_size: int) -> Scored:
    count = len(part_NHWC)
    if count == batch_size:
        return score(part_NHWC.contiguous())
    full_NHWC = part_NHWC.new_zeros(batch_size, *part_NHWC.shape[1:])
    full_NHWC[:count] = part_NHWC
    scores_NH, embeddings_ND = score(full_NHWC)
    return scores_NH[:count], embeddings_ND[:count]


def check_compiler(backend: str) -> None:
    """Raises ValueError where there is no C++ compiler, which Inductor needs for CPUs and for launchers."""
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else ["g++", "clang++"])):
        raise ValueError(
            f"backend {backend} needs a C++ compiler, and finds no {named or 'g++'}: install one "
            "(apt install g++), or use --backend torchscript"
        )
