"""GPU readings from NVML: utilisation, clock, power, temperature, memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class GpuReading:
    """A GPU's values now, by the names of the metrics without `gpu_`; those that it lacks are left out.

    `name` is its index in NVML's order, which is that of the PCI bus.
    """

    name: str
    values: Mapping[str, float]


class Gpus:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, all where it is not set; none where there is no NVML."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}
        with suppress(Exception):  # no library, no driver or no permission: pynvml has an error for each
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            self._handles = dict(self._visible())

    def read(self) -> list[GpuReading]:
        """Reads every GPU, in about a millisecond each."""
        return [GpuReading(name, dict(self._values(handle))) for name, handle in self._handles.items()]

    def close(self) -> None:
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._nvml, self._handles = None, {}

    def _visible(self) -> Iterator[tuple[str, Any]]:
        wanted = os.environ.get(_VISIBLE)
        names = None if wanted is None else [name.strip() for name in wanted.split(",")]
        for index in range(self._nvml.nvmlDeviceGetCount()):
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = str(self._nvml.nvmlDeviceGetUUID(handle))
            if names is None or any(name == str(index) or (name and uuid.startswith(name)) for name in names):
                yield str(index), handle

    def _values(self, handle: Any) -> Iterator[tuple[str, float]]:
        nvml = self._nvml
        readings: dict[str, Callable[[], float]] = {
            "utilization_ratio": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "sm_clock_hertz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6,
            "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "memory_total_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
        }
        for name, read in readings.items():
            with suppress(nvml.NVMLError):
                yield name, float(read())
