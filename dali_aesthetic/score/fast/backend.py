"""The one interface of all backends, and how to get one by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from dali_aesthetic.score.clip import VisionTower
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.spec import TowerSpec

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The precisions of the plain backends: what the tower's weights and activations are stored in."""


class Backend(Protocol):
    """Scores batches of pixels that are already on its device.

    Work is launched on the device's current stream; nothing waits for it. The tensors returned are valid
    until the next call.
    """

    name: str
    precision: str
    spec: TowerSpec
    head_names: tuple[str, ...]

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N, H] float32 and embeddings [N, D], not normalised, of uint8 RGB [N, S, S, 3].

        Raises ValueError for pixels of another shape or dtype.
        """
        ...


Builder = Callable[[VisionTower, HeadBank, torch.device, str, int], Backend]
"""From a float32 tower on the CPU (which it may take over), heads, device, precision and batch size."""

_BUILDERS: Mapping[str, str] = {
    "eager": "dali_aesthetic.score.fast.eager:build",
    "torchscript": "dali_aesthetic.score.fast.torchscript:build",
}
"""`module:function` of each builder, imported when asked for: a backend may need what isn't installed."""


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` made concrete: fp16 on a GPU, fp32 on a CPU. Raises ValueError for fp16 on a CPU."""
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise ValueError(
            "precision fp16 needs a GPU: CPUs compute it slowly and inexactly; use --precision fp32 "
            "(or auto) with --device cpu"
        )
    return precision


def resolve_backend(name: str, device: torch.device) -> str:
    """`auto` made concrete: torchscript on a GPU, eager on a CPU. Raises ValueError for an unknown name."""
    if name == "auto":
        return "torchscript" if device.type == "cuda" else "eager"
    if name not in _BUILDERS:
        raise ValueError(f"unknown backend {name!r}; there are auto, {', '.join(_BUILDERS)}")
    return name


def build_backend(
    name: str, tower: VisionTower, heads: HeadBank, device: torch.device, precision: str, batch_size: int
) -> Backend:
    """The backend `name` (or `auto`) on `device`. Takes the tower over.

    Raises ValueError for an unknown name, or a precision that the backend or the device doesn't have.
    """
    name, precision = resolve_backend(name, device), resolve_precision(precision, device)
    module, function = _BUILDERS[name].split(":")
    builder: Builder = getattr(importlib.import_module(module), function)
    return builder(tower, heads, device, precision, batch_size)


def dtype_of(precision: str, backend: str) -> torch.dtype:
    """The torch dtype of a precision. Raises ValueError for one the plain backends don't have."""
    if precision not in DTYPES:
        raise ValueError(
            f"backend {backend} has no precision {precision!r}; it has auto, {', '.join(DTYPES)}"
        )
    return DTYPES[precision]
