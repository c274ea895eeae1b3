"""The one interface of all backends, and how to get one by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dali_aesthetic.overlap import pool
from dali_aesthetic.score.backends.cache import point_libraries_to_it
from dali_aesthetic.score.backends.calibration import Calibration
from dali_aesthetic.score.backends.plain import DTYPES
from dali_aesthetic.score.clip import VisionTower, check_pixels
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

    `gpu_batch` is the batch size that suits it on a GPU. With `any_size` it takes batches of any size as they
    are, and from several threads at a time.
    """

    builder: str
    precisions: tuple[str, ...]
    gpu_batch: int = 512
    any_size: bool = False


_BACKENDS: Mapping[str, _Entry] = {
    "eager": _Entry("dali_aesthetic.score.backends.plain:build", tuple(DTYPES), any_size=True),
    "torchscript": _Entry("dali_aesthetic.score.backends.plain:build", tuple(DTYPES), any_size=True),
    "compile": _Entry("dali_aesthetic.score.backends.plain:build", tuple(DTYPES)),
    "export": _Entry("dali_aesthetic.score.backends.exported:build", tuple(DTYPES)),
    "triton": _Entry("dali_aesthetic.score.backends.triton_tower:build", ("fp16",)),
    # 1019 images of 257 tokens fill the waves of tiles on 132 multiprocessors.
    "fused": _Entry("dali_aesthetic.score.backends.fused:build", ("fp16", "bf16", "fp8"), gpu_batch=1019),
}
CPU_BATCH = 32


def resolve_backend(name: str, precision: str, device: torch.device) -> tuple[str, str]:
    """Backend and precision with `auto` made concrete: torchscript fp16 on a GPU, eager fp32 on a CPU.

    Raises ValueError for an unknown backend, one without a precision for CPUs there, a precision that it
    doesn't have, fp16 on a CPU, and fp8 on anything but a Hopper GPU with QuACK.
    """
    on_gpu = device.type == "cuda"
    if name == "auto":
        name = "fused" if precision == "fp8" else "torchscript" if on_gpu else "eager"
    if name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there are auto, {', '.join(_BACKENDS)}")
    known = _BACKENDS[name].precisions
    if precision == "auto":
        precision = "fp16" if on_gpu else "fp32"
        if precision not in known:
            raise ValueError(f"backend {name} needs a GPU; use --backend auto (or eager) with --device cpu")
    if precision not in known:
        raise ValueError(f"backend {name} has no precision {precision!r}; it has auto, {', '.join(known)}")
    _check_device(precision, device)
    return name, precision


def _check_device(precision: str, device: torch.device) -> None:
    """Raises ValueError where no backend has this precision on `device`."""
    on_gpu = device.type == "cuda"
    if precision == "fp16" and not on_gpu:
        raise ValueError(
            "precision fp16 needs a GPU: CPUs compute it slowly and inexactly; use --precision fp32 "
            "(or auto) with --device cpu"
        )
    if precision == "fp8" and (reason := _why_no_kernels(device)):
        plain = "fp16" if on_gpu else "fp32"
        raise ValueError(f"precision fp8 can't run here: {reason}; use --precision {plain}, or auto")


def choose_backend(name: str, precision: str, device: torch.device, spec: TowerSpec) -> tuple[str, str]:
    """As `resolve_backend`, for a tower that is known: of what can run it `auto` takes the fastest.

    It never takes fp8, which needs the images of a run to be judged by.
    """
    chosen, precision = resolve_backend(name, precision, device)
    if chosen == "fused" or (name == "auto" and device.type == "cuda"):
        reason = why_not_fused(spec, device, precision)
        if not reason:
            chosen = "fused"
        elif chosen == "fused":
            raise ValueError(
                f"backend fused can't run {precision} here: {reason}; use --backend auto --precision auto"
            )
        elif precision == "fp16" and _is_timed_for_triton(device) and not _why_not_triton(spec, device):
            chosen = "triton"
    return chosen, precision


def _is_timed_for_triton(device: torch.device) -> bool:
    """On Hopper it was measured to be the faster one of what needs no QuACK; elsewhere nobody has looked."""
    return torch.cuda.get_device_capability(device)[0] == 9


def _why_not_triton(spec: TowerSpec, device: torch.device) -> str:
    from dali_aesthetic.score.backends.triton_tower import refusal

    return refusal(spec, device)


def why_not_fused(spec: TowerSpec, device: torch.device, precision: str) -> str:
    """Why the fused kernels can't run `spec` on `device`; empty where they can."""
    from dali_aesthetic.score.backends.fused import refusal

    return refusal(spec, device, precision)


def _why_no_kernels(device: torch.device) -> str:
    """What `device` lacks for the fused kernels, whatever the tower; empty where it has all."""
    from dali_aesthetic.score.backends.kernels.gemm import refusal

    return refusal(device)


def default_batch(name: str, device: torch.device) -> int:
    """Images encoded at a time by the backend `name`, where nothing else is asked for."""
    return _BACKENDS[name].gpu_batch if device.type == "cuda" else CPU_BATCH


def takes_any_size(name: str) -> bool:
    """Whether the backend `name` takes batches of any size, and from several threads at a time."""
    return _BACKENDS[name].any_size


def build_backend(
    name: str,
    tower: VisionTower,
    heads: HeadBank,
    device: torch.device,
    precision: str,
    batch_size: int,
    calibration: Calibration | None = None,
) -> Backend:
    """The backend `name` (or `auto`) on `device`. Takes the tower over. Raises as `resolve_backend`.

    fp8 needs a `calibration`. What is compiled when it is first called is not yet: see `warm_up`.
    """
    name, precision = choose_backend(name, precision, device, tower.spec)
    point_libraries_to_it()
    if precision == "fp8":
        return _build_float8(tower, heads, device, batch_size, calibration)
    module, function = _BACKENDS[name].builder.split(":")
    builder: Builder = getattr(importlib.import_module(module), function)
    return builder(tower, heads, device, precision, batch_size)


def warm_up(backend: Backend, device: torch.device, batch_size: int) -> None:
    """Has a GPU score a batch and waits for it: loading, compiling and tuning don't belong in the loop."""
    if device.type == "cuda":
        size = backend.spec.image_size
        backend(torch.zeros(batch_size, size, size, 3, dtype=torch.uint8, device=device))
        torch.cuda.synchronize(device)


def import_libraries(name: str, precision: str, device: torch.device, spec: TowerSpec) -> None:
    """Imports what the backend that a tower like `spec` will get needs, and wakes the GPU: seconds to save.

    Raises ValueError as `resolve_backend`.
    """
    if device.type == "cuda":
        torch.empty(1, device=device)
    # Which GELU it is only the weights tell: too much may be imported, never too little.
    chosen, _ = choose_backend(name, precision, device, spec.with_quick_gelu(True))
    if chosen in ("fused", "triton"):
        from dali_aesthetic.score.backends.kernels import gemm

        if chosen == "fused":
            gemm.import_epilogues()


def _build_float8(
    tower: VisionTower,
    heads: HeadBank,
    device: torch.device,
    batch_size: int,
    calibration: Calibration | None,
) -> Backend:
    from dali_aesthetic.score.backends.fused_fp8 import build

    if calibration is None:
        raise ValueError(
            "precision fp8 needs scales that were measured on images: `dali-aesthetic run` measures them on "
            "its input; elsewhere name its OUTPUT/calibration.safetensors as model.calibration, or use fp16"
        )
    return build(tower, heads, device, batch_size, calibration)


# FOLDED dali_aesthetic/score/fast/slices.py: A batch on the CPU in slices, one thread each: scores that don't depend on the number of cores.
#
# A matrix product that several threads share is cut up by their number, and with it the order of its sums: the
# last bits of a score would differ between one worker with 16 cores and four with 4. Slices are computed by one
# thread each, whatever their number and the batch size, and need no thread to wait for another.


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
