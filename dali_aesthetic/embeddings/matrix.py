"""One file of embeddings as rows: mapped, read in blocks, each row judged before it is scored.

Shape legend: R rows of a block, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dali_aesthetic.shards.inputs import InputError
from dali_aesthetic.types import Status

BLOCK_ROWS = 512
"""Rows at a time: few enough to stay in a CPU's cache from reading to score."""
NORM_TOLERANCE = 1e-2
_MAX_OFF = 0.01
"""The share of a block's rows that may have another norm than 1 as damage of theirs; above it the file was
not normalised."""


class NotNormalized(ValueError):
    """Embeddings whose L2 norm is not 1: the heads would give nonsense for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Rows `start` to `start + R`: `rows_RD` float32, and why those that can't be scored can't."""

    start: int
    rows_RD: torch.Tensor
    problems: dict[int, tuple[Status, str]]


def open_matrix(path: str) -> npt.NDArray[np.floating]:
    """The file's array [rows, D], mapped. Raises InputError for anything but a matrix of floats."""
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy parses a damaged header as Python, and takes a PK for a zip
        raise InputError(f"{path} can't be read as .npy ({error}); is it complete?") from error
    if (
        not isinstance(matrix, np.ndarray)
        or matrix.ndim != 2
        or matrix.dtype.kind != "f"
        or not matrix.shape[1]
    ):
        shape = f"{matrix.dtype} {list(matrix.shape)}" if isinstance(matrix, np.ndarray) else "an archive"
        raise InputError(f"{path} holds {shape}, not a matrix of floats with an embedding in each row")
    return matrix


def blocks(path: str, matrix: npt.NDArray[np.floating], normalize: bool) -> Iterator[Block]:
    """The rows of `matrix` in order. Raises NotNormalized, unless `normalize` allows any norm above 0."""
    native = f"f{min(matrix.dtype.itemsize, 8)}"  # torch takes no other byte order, and nothing longer
    for start in range(0, len(matrix), BLOCK_ROWS):
        rows_RD = torch.from_numpy(np.array(matrix[start : start + BLOCK_ROWS], native)).float()
        yield Block(start=start, rows_RD=rows_RD, problems=_problems(path, start, rows_RD, normalize))


def _problems(path: str, start: int, rows_RD: torch.Tensor, normalize: bool) -> dict[int, tuple[Status, str]]:
    norms = torch.linalg.vector_norm(rows_RD, dim=1).numpy()
    off = np.abs(norms - 1) > NORM_TOLERANCE
    finite = np.isfinite(norms)
    wrong = np.flatnonzero(off & finite & (norms > 0)) if not normalize else np.empty(0, np.int64)
    # A file's last rows are judged as a whole block: of less than a hundred a single one is above the share.
    if len(wrong) > _MAX_OFF * min(start + len(norms), BLOCK_ROWS):
        row = int(wrong[0])
        raise NotNormalized(
            f"{path}: {len(wrong)} of {len(norms)} embeddings from row {start} on don't have the L2 norm 1 "
            f"(row {start + row} has {norms[row]:.4g}); the heads were trained on normalised embeddings and "
            "give nonsense for others. If they are CLIP image embeddings before normalisation, --normalize "
            "normalises them"
        )
    problems = {int(row): (Status.UNDECODABLE, f"its L2 norm is {norms[row]:.4g}, not 1") for row in wrong}
    problems |= {int(row): (Status.EMPTY, "all its numbers are 0") for row in np.flatnonzero(norms == 0)}
    unfit = np.flatnonzero(~finite)
    return problems | {int(row): (Status.UNDECODABLE, "it holds NaN or infinity") for row in unfit}
