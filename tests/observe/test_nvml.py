"""Readings of NVML, and none without a driver."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from dali_aesthetic.observe.metrics import METRICS, Gpus

NAMES = {metric.name.removeprefix("gpu_") for metric in METRICS if metric.name.startswith("gpu_")}


class NVMLError(Exception):
    pass


def fake(**broken: Any) -> SimpleNamespace:
    """Two GPUs by NVML's functions and units; `broken` replaces some."""

    def unsupported(handle: object) -> int:
        raise NVMLError("Not Supported")

    functions = {
        "NVMLError": NVMLError,
        "NVML_CLOCK_SM": 1,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}{handle}ab",
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=93, memory=10),
        "nvmlDeviceGetClockInfo": lambda handle, kind: 1980,
        "nvmlDeviceGetPowerUsage": lambda handle: 651_300,
        "nvmlDeviceGetTemperature": lambda handle, kind: 61,
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=3, total=85_899_345_920),
    }
    return SimpleNamespace(**{**functions, **dict.fromkeys(broken, unsupported)})


def test_values_have_the_units_of_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake())
    first, second = Gpus().read()
    assert (first.name, second.name) == ("0", "1")
    assert first.values == {
        "utilization_ratio": 0.93,
        "sm_clock_hertz": 1.98e9,
        "power_watts": 651.3,
        "temperature_celsius": 61,
        "memory_used_bytes": 3,
        "memory_total_bytes": 80 * 2**30,
    }
    assert first.values.keys() == NAMES


def test_readings_that_a_gpu_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake(nvmlDeviceGetPowerUsage=True))
    assert NAMES - Gpus().read()[0].values.keys() == {"power_watts"}


@pytest.mark.parametrize(
    ("visible", "names"), [("1", ["1"]), ("GPU-00", ["0"]), ("1,0", ["0", "1"]), ("", []), ("-1", [])]
)
def test_only_visible_gpus_are_shown(monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in Gpus().read()] == names


def test_without_a_driver_there_are_no_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = fake()

    def no_driver() -> None:
        raise NVMLError("Driver Not Loaded")

    broken.nvmlInit = no_driver
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    gpus = Gpus()
    assert gpus.read() == []
    gpus.close()


@pytest.mark.gpu
def test_a_real_gpu_has_every_reading() -> None:
    gpus = Gpus()
    try:
        readings = gpus.read()
        assert readings
        assert readings[0].values.keys() == NAMES
        assert 10 < readings[0].values["power_watts"] < 2000
        assert 1e8 < readings[0].values["sm_clock_hertz"] < 5e9
        assert 0 < readings[0].values["memory_used_bytes"] < readings[0].values["memory_total_bytes"]
    finally:
        gpus.close()
