"""The backends, and which of them runs a tower on a device in which precision, or the reason why not.

Importing this needs neither Triton nor QuACK.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dali_aesthetic.score.backends.plain import DTYPES
from dali_aesthetic.score.spec import TowerSpec

CPU_BATCH = 32
"""Images encoded at a time on a CPU."""

QUACK_VERSION = "0.6.5"
"""The version that the pinned tiles of `kernels.gemm` were measured with."""

_AMPERE = (8, 0)
"""The oldest that Triton's kernels run on: it has asynchronous copies and enough shared memory."""
_HOPPER = 9


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """`builder` is `module:function`, imported on demand: a backend may need packages that are missing.

    `gpu_batch` is the number of images encoded at a time on a GPU. A backend with `any_size` takes batches
    of any size without padding, and from several threads at a time.
    """

    builder: str
    precisions: tuple[str, ...]
    gpu_batch: int = 512
    any_size: bool = False


_HERE = __name__.rpartition(".")[0]
BACKENDS: Mapping[str, BackendEntry] = {
    "eager": BackendEntry(f"{_HERE}.plain:build_eager", tuple(DTYPES), any_size=True),
    "torchscript": BackendEntry(f"{_HERE}.plain:build_torchscript", tuple(DTYPES), any_size=True),
    "compile": BackendEntry(f"{_HERE}.plain:build_compiled", tuple(DTYPES)),
    "triton": BackendEntry(f"{_HERE}.triton_tower:build", ("fp16",)),
    # 1019 images of 257 tokens fill the waves of tiles on 132 multiprocessors.
    "fused": BackendEntry(f"{_HERE}.fused:build", ("fp16", "bf16", "fp8"), gpu_batch=1019),
}


def default_batch(backend: str, device: torch.device) -> int:
    """Images that `backend` encodes at a time where no batch size is given."""
    return BACKENDS[backend].gpu_batch if device.type == "cuda" else CPU_BATCH


def resolve_backend(name: str, precision: str, device: torch.device) -> tuple[str, str]:
    """Backend and precision with `auto` made concrete: torchscript fp16 on a GPU, eager fp32 on a CPU.

    Raises ValueError for an unknown backend, a precision that it doesn't have, a backend for GPUs or fp16 on
    a CPU, and fp8 on anything but a Hopper GPU with QuACK.
    """
    on_gpu = device.type == "cuda"
    chosen = name
    if name == "auto":
        chosen = "fused" if precision == "fp8" else "torchscript" if on_gpu else "eager"
    if chosen not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there are auto, {', '.join(BACKENDS)}")
    known = BACKENDS[chosen].precisions
    if precision not in ("auto", *known):
        raise ValueError(f"backend {chosen} has no precision {precision!r}; it has auto, {', '.join(known)}")
    _check_device(name, precision, device)
    if precision == "auto":
        precision = "fp16" if on_gpu else "fp32"
    return chosen, precision


def choose_backend(name: str, precision: str, device: torch.device, spec: TowerSpec) -> tuple[str, str]:
    """As `resolve_backend`, for a tower of `spec`: `auto` takes the fastest backend that runs it.

    It never takes fp8, which must be judged on the images of a run. Raises ValueError also for a backend
    that can't run the tower.
    """
    chosen, precision = resolve_backend(name, precision, device)
    if name == "auto" and chosen != "fused" and device.type == "cuda":
        if not why_not_fused(spec, device, precision):
            return "fused", precision
        if precision == "fp16" and _is_hopper(device) and not why_not_triton(spec, device):
            # On Hopper it measured faster than TorchScript; elsewhere it was not measured.
            return "triton", precision
        return chosen, precision
    reason = ""
    if chosen == "fused":
        reason = why_not_fused(spec, device, precision)
    elif chosen == "triton":
        reason = why_not_triton(spec, device)
    if reason:
        raise ValueError(
            f"backend {chosen} can't run {precision} here: {reason}; use --backend auto --precision auto"
        )
    return chosen, precision


def _check_device(backend: str, precision: str, device: torch.device) -> None:
    """Raises ValueError where `device` can't run the backend or the precision that was asked for."""
    on_gpu = device.type == "cuda"
    if not on_gpu and backend != "auto" and "fp32" not in BACKENDS[backend].precisions:
        raise ValueError(f"backend {backend} needs a GPU; use --backend auto (or eager) with --device cpu")
    if not on_gpu and precision == "fp16":
        raise ValueError(
            "precision fp16 needs a GPU: CPUs compute it slowly and inexactly; use --precision fp32 "
            "(or auto) with --device cpu"
        )
    if precision == "fp8" and (reason := why_not_quack(device)):
        plain = "fp16" if on_gpu else "fp32"
        raise ValueError(f"precision fp8 can't run here: {reason}; use --precision {plain}, or auto")


def why_not_fused(spec: TowerSpec, device: torch.device, precision: str) -> str:
    """Why backend `fused` can't run a tower of `spec` on `device`; empty where it can."""
    if precision not in (known := BACKENDS["fused"].precisions):
        return f"it has {', '.join(known[:-1])} and {known[-1]}, not {precision}"
    if reason := why_not_quack(device) or why_no_launcher() or _why_not_attention(spec):
        return reason
    if not spec.quick_gelu:
        return "its epilogue has QuickGELU only"
    return "" if spec.width % 64 == 0 else f"it takes widths in steps of 64, not {spec.width}"


def why_not_triton(spec: TowerSpec, device: torch.device) -> str:
    """Why backend `triton` can't run a tower of `spec` on `device`; empty where it can."""
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    if (found := torch.cuda.get_device_capability(device)) < _AMPERE:
        return f"it needs a GPU from Ampere on (compute capability 8.0), not {found[0]}.{found[1]}"
    if importlib.util.find_spec("triton") is None:
        return "it needs the package triton"
    return why_no_launcher() or _why_not_attention(spec)


def why_not_quack(device: torch.device) -> str:
    """Why QuACK's matrix products can't run on `device`; empty where they can."""
    if device.type != "cuda":
        return "it needs a Hopper GPU"
    if not _is_hopper(device):
        major, minor = torch.cuda.get_device_capability(device)
        return f"it needs a Hopper GPU (compute capability 9.0), not {major}.{minor}"
    if any(importlib.util.find_spec(name) is None for name in ("quack", "cutlass")):
        return f"it needs the package quack-kernels=={QUACK_VERSION} (in the clone, pip install '.[hopper]')"
    return ""


def why_no_launcher() -> str:
    """Why Triton can't launch a kernel on this machine; empty where it can.

    It builds each kernel's launcher with a C compiler, which it looks for as this does.
    """
    if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return ""
    return "Triton needs a C compiler (apt install gcc python3-dev)"


def _why_not_attention(spec: TowerSpec) -> str:
    """Why `kernels.attention` can't take the tower; empty where it can."""
    patches, size = spec.tokens - 1, spec.width // spec.heads
    if patches & (patches - 1) or not 16 <= patches <= 256:
        return f"its attention kernel takes 16 to 256 patches, a power of two, not {patches}"
    if size not in (16, 32, 64, 128):
        return f"its attention kernel takes heads of 16, 32, 64 or 128, not {size}"
    return ""


def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] == _HOPPER
