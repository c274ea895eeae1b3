"""A batch on the CPU in slices, one thread each: scores that don't depend on the number of cores.

A matrix product that several threads share is cut up by their number, and with it the order of its sums: the
last bits of a score would differ between one worker with 16 cores and four with 4. Slices are computed by one
thread each, whatever their number and the batch size, and need no thread to wait for another.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dali_aesthetic.overlap import pool
from dali_aesthetic.score.clip import check_pixels
from dali_aesthetic.score.fast.backend import Backend

SLICE = 8
"""Images. Another number gives other last bits."""


class SlicedBackend:
    """See `Backend`; `backend` is one on the CPU that takes any number of images."""

    def __init__(self, backend: Backend, num_threads: int) -> None:
        self.name, self.precision = backend.name, backend.precision
        self.spec, self.head_names = backend.spec, backend.head_names
        self._backend = backend
        self._pool = pool(num_threads, "encoder")

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend`."""
        check_pixels(images_NHWC, self.spec)
        parts = list(self._pool.map(self._score, _slices(images_NHWC)))
        scores_NH, embeddings_ND = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        return scores_NH[: len(images_NHWC)], embeddings_ND[: len(images_NHWC)]

    def _score(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(1)  # of this thread of the pool
        return self._backend(images_NHWC)


def _slices(images_NHWC: Tensor) -> Iterator[Tensor]:
    """The last one filled up, so that all have one shape."""
    for part_NHWC in torch.split(images_NHWC, SLICE):
        if len(part_NHWC) < SLICE:
            part_NHWC = torch.cat(
                [part_NHWC, part_NHWC.new_zeros(SLICE - len(part_NHWC), *part_NHWC.shape[1:])]
            )
        yield part_NHWC
