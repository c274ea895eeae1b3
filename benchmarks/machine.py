"""The machine: hardware, driver and versions, and a GPU's clocks and power while it works."""

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
    "nvidia-cutlass-dsl", "torchvision", "pillow", "pyarrow", "webdataset", "nemo-curator", "transformers",
)  # fmt: skip


def describe(device: torch.device) -> dict[str, Any]:
    """Names and versions; nothing that identifies one machine."""
    return {
        "hardware": hardware(device),
        "driver": _driver() if device.type == "cuda" else None,
        "cpu": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "load_average_before": round(os.getloadavg()[0], 2),
        "gpu_limits": _limits(device) if device.type == "cuda" else None,
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
    """Samples a GPU while its block runs; on a CPU it does nothing.

    Clocks in MHz, power in W, utilisation of SMs, memory and JPEG decoders in %, memory in use in MiB.
    """

    def __init__(self, device: torch.device, interval_s: float = 0.1) -> None:
        self._device = device
        self._interval_s = interval_s
        self._rows: list[dict[str, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._start_joules = 0.0
        self.joules = 0.0

    def __enter__(self) -> GpuSampler:
        if self._device.type == "cuda":
            self._start_joules = _joules(self._device)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._device.type == "cuda":
            self.joules = _joules(self._device) - self._start_joules

    def medians(self) -> dict[str, float]:
        """The median of each figure, the maximum of memory in use; empty without a GPU."""
        if not self._rows:
            return {}
        medians = {name: statistics.median(row[name] for row in self._rows) for name in self._rows[0]}
        medians["memory_mib"] = max(row["memory_mib"] for row in self._rows)
        return {name: round(value, 1) for name, value in medians.items() if value >= 0}

    def _sample(self) -> None:
        pynvml, handle = _nvml(self._device)
        while not self._stop.wait(self._interval_s):
            self._rows.append(_figures(pynvml, handle))


def _nvml(device: torch.device) -> tuple[Any, Any]:
    """NVML and its handle of a torch device, by UUID: `CUDA_VISIBLE_DEVICES` renumbers torch's devices."""
    import pynvml

    pynvml.nvmlInit()
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError:
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)


def _joules(device: torch.device) -> float:
    """Energy since the driver was loaded; 0 for GPUs that don't count it."""
    pynvml, handle = _nvml(device)
    try:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except pynvml.NVMLError:
        return 0.0


def _figures(pynvml: Any, handle: Any) -> dict[str, float]:
    """Current figures; -1 for what this GPU doesn't report."""
    utilisation = pynvml.nvmlDeviceGetUtilizationRates(handle)
    figures = {
        "sm_mhz": float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
        "memory_mhz": float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)),
        "watts": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "sm_percent": float(utilisation.gpu),
        "memory_percent": float(utilisation.memory),
        "memory_mib": pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**20,
    }
    try:
        figures["jpeg_percent"] = float(pynvml.nvmlDeviceGetJpgUtilization(handle)[0])
    except (pynvml.NVMLError, AttributeError):
        figures["jpeg_percent"] = -1.0
    return figures


def _limits(device: torch.device) -> dict[str, float]:
    """The GPU's limits of power (W) and SM clock (MHz)."""
    pynvml, handle = _nvml(device)
    return {
        "watts": pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000,
        "sm_mhz": float(pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)),
    }


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
