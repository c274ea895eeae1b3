"""What a result was measured on: hardware, driver, versions, and the GPU's clocks and power meanwhile."""

from __future__ import annotations

import os
import platform
import statistics
import threading
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

_PACKAGES = (
    "torch", "triton", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "open_clip_torch", "quack-kernels",
    "nvidia-cutlass-dsl",
)  # fmt: skip


def describe(device: torch.device) -> dict[str, Any]:
    """Names and versions, nothing that identifies the machine."""
    return {
        "hardware": hardware(device),
        "driver": _driver() if device.type == "cuda" else None,
        "cpu": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def hardware(device: torch.device) -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def slug(device: torch.device) -> str:
    """`hardware` as a part of a file name: `h100`, `cpu`."""
    words = hardware(device).lower().replace("nvidia", "").split()
    return words[0] if words else "gpu"


class GpuSampler:
    """Samples SM clock (MHz), power (W) and utilisation (%) of a GPU while its block runs."""

    def __init__(self, device: torch.device, interval_s: float = 0.1) -> None:
        self._index = device.index or 0 if device.type == "cuda" else None
        self._interval_s = interval_s
        self._rows: list[dict[str, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> GpuSampler:
        if self._index is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def medians(self) -> dict[str, float]:
        """The median of each figure over the block; empty without a GPU."""
        if not self._rows:
            return {}
        return {name: round(statistics.median(row[name] for row in self._rows), 1) for name in self._rows[0]}

    def _sample(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(self._index)
        while not self._stop.wait(self._interval_s):
            self._rows.append(_figures(pynvml, handle))


def _figures(pynvml: Any, handle: Any) -> dict[str, float]:
    figures = {
        "sm_mhz": float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
        "watts": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "sm_percent": float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
    }
    try:
        figures["jpeg_percent"] = float(pynvml.nvmlDeviceGetJpgUtilization(handle)[0])
    except pynvml.NVMLError:
        figures["jpeg_percent"] = -1.0
    return figures


def _driver() -> str:
    import pynvml

    pynvml.nvmlInit()
    version = pynvml.nvmlSystemGetDriverVersion()
    return version.decode() if isinstance(version, bytes) else str(version)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
