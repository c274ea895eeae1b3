"""The one interface of all backends, and how to get one by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dali_aesthetic.score.clip import VisionTower
from dali_aesthetic.score.fast.module import DTYPES
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.spec import TowerSpec


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


@dataclass(frozen=True, slots=True)
class _Entry:
    """`builder` is `module:function`, imported when asked for: a backend may need what isn't installed.

    `gpu_batch` is the batch size that suits it on a GPU.
    """

    builder: str
    precisions: tuple[str, ...]
    gpu_batch: int = 512


_BACKENDS: Mapping[str, _Entry] = {
    "eager": _Entry("dali_aesthetic.score.fast.eager:build", tuple(DTYPES)),
    "torchscript": _Entry("dali_aesthetic.score.fast.torchscript:build", tuple(DTYPES)),
    # 1019 images of 257 tokens fill the waves of tiles on 132 multiprocessors.
    "fused": _Entry("dali_aesthetic.score.fast.fused:build", ("fp16", "bf16"), gpu_batch=1019),
}
CPU_BATCH = 32


def resolve_backend(name: str, precision: str, device: torch.device) -> tuple[str, str]:
    """Backend and precision with `auto` made concrete: torchscript fp16 on a GPU, eager fp32 on a CPU.

    Raises ValueError for an unknown backend, a precision that it doesn't have, and fp16 on a CPU.
    """
    on_gpu = device.type == "cuda"
    if name == "auto":
        name = "torchscript" if on_gpu else "eager"
    if precision == "auto":
        precision = "fp16" if on_gpu else "fp32"
    if name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there are auto, {', '.join(_BACKENDS)}")
    if precision not in (known := _BACKENDS[name].precisions):
        raise ValueError(f"backend {name} has no precision {precision!r}; it has auto, {', '.join(known)}")
    if precision == "fp16" and not on_gpu:
        raise ValueError(
            "precision fp16 needs a GPU: CPUs compute it slowly and inexactly; use --precision fp32 "
            "(or auto) with --device cpu"
        )
    return name, precision


def choose_backend(name: str, precision: str, device: torch.device, spec: TowerSpec) -> tuple[str, str]:
    """As `resolve_backend`, for a tower that is known: `auto` takes the fused kernels where they can run."""
    chosen, precision = resolve_backend(name, precision, device)
    if name == "auto" and device.type == "cuda" and not why_not_fused(spec, device, precision):
        chosen = "fused"
    return chosen, precision


def why_not_fused(spec: TowerSpec, device: torch.device, precision: str) -> str:
    """Why the fused kernels can't run `spec` on `device`; empty where they can."""
    from dali_aesthetic.score.fast.fused import refusal

    return refusal(spec, device, precision)


def default_batch(name: str, device: torch.device) -> int:
    """Images encoded at a time by the backend `name`, where nothing else is asked for."""
    return _BACKENDS[name].gpu_batch if device.type == "cuda" else CPU_BATCH


def build_backend(
    name: str, tower: VisionTower, heads: HeadBank, device: torch.device, precision: str, batch_size: int
) -> Backend:
    """The backend `name` (or `auto`) on `device`. Takes the tower over. Raises as `resolve_backend`.

    It has run a batch when it is returned: compiling, tuning and graph capture don't belong in the loop,
    and a capture there would break on what the decoder's threads do meanwhile.
    """
    name, precision = choose_backend(name, precision, device, tower.spec)
    module, function = _BACKENDS[name].builder.split(":")
    builder: Builder = getattr(importlib.import_module(module), function)
    backend = builder(tower, heads, device, precision, batch_size)
    if device.type == "cuda":
        size = backend.spec.image_size
        backend(torch.zeros(batch_size, size, size, 3, dtype=torch.uint8, device=device))
        torch.cuda.synchronize(device)
    return backend
