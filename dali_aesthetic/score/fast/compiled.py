"""The scoring module by `torch.compile`: compiled when a process starts, from Inductor's cache if warm."""

from __future__ import annotations

import torch
from torch import Tensor

from dali_aesthetic.score.clip import VisionTower, check_pixels
from dali_aesthetic.score.fast.fixed_batch import Scored, check_compiler, in_batches
from dali_aesthetic.score.fast.module import DTYPES, ScoringModule
from dali_aesthetic.score.head import HeadBank


class CompiledBackend:
    """See `Backend`. Batches of another size than the compiled one are padded to it."""

    name = "compile"

    def __init__(
        self, module: ScoringModule, precision: str, batch_size: int, mode: str | None = None
    ) -> None:
        """`mode` is torch.compile's: None, or `max-autotune-no-cudagraphs` to have products tuned too."""
        self.precision = precision
        self.spec = module.tower.spec
        self.head_names = module.heads.names
        self._batch_size = batch_size
        self._compiled = torch.compile(module, dynamic=False, fullgraph=True, mode=mode)

    def __call__(self, images_NHWC: Tensor) -> Scored:
        """See `Backend`."""
        check_pixels(images_NHWC, self.spec)
        with torch.inference_mode():
            return in_batches(self._compiled, images_NHWC, self._batch_size)


def build(
    tower: VisionTower,
    heads: HeadBank,
    device: torch.device,
    precision: str,
    batch_size: int,
    mode: str | None = None,
) -> CompiledBackend:
    """A compiled backend; it compiles when it is first called. Raises ValueError without a C++ compiler."""
    check_compiler(CompiledBackend.name)
    module = ScoringModule(tower, heads, DTYPES[precision]).to(device)
    return CompiledBackend(module, precision, batch_size, mode)
