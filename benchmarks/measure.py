"""Time repeated work: images/s, CPU time, energy, and the GPU's clocks and power."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.machine import GpuSampler
from benchmarks.results import Measured

Work = Callable[[], int]
"""Does some work, waits for the device, and returns the number of images processed."""


@dataclass(slots=True)
class Clock:
    """Rates and CPU times of the repeats of one piece of work."""

    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    num_images: int = 0
    seconds: float = 0.0

    def add(self, num_images: int, seconds: float, cpu_seconds: float) -> None:
        self.rates.append(num_images / max(seconds, 1e-9))
        self.cpu_us.append(1e6 * cpu_seconds / max(num_images, 1))
        self.num_images += num_images
        self.seconds += seconds

    def detail(self) -> dict[str, float]:
        """CPU microseconds an image, and the cores that 1,000 images/s need."""
        cpu_us = statistics.median(self.cpu_us)
        return {"cpu_us_per_image": round(cpu_us, 2), "cores_per_1000_images_s": round(cpu_us / 1000, 4)}


def measure_rate(
    name: str,
    work: Work,
    repeats: int,
    device: torch.device,
    *,
    warm_ups: int = 1,
    limit: float | None = None,
    detail: Callable[[], Mapping[str, Any]] = dict,
) -> Measured:
    """A row of images/s: `work` run `repeats` times after `warm_ups`. `detail` is called at the end."""
    for _ in range(warm_ups):
        work()
    clock = Clock()
    with GpuSampler(device) as gpu:
        for _ in range(repeats):
            cpu, start = cpu_seconds(), time.perf_counter()
            count = work()
            clock.add(count, time.perf_counter() - start, cpu_seconds() - cpu)
    extra = dict(clock.detail())
    if gpu.joules:
        extra["images_per_joule"] = round(clock.num_images / gpu.joules, 3)
    return Measured(
        name=name, values=clock.rates, limit=limit, detail={**extra, **detail()}, gpu=gpu.medians()
    )


def measure_speed(
    name: str,
    work: Work,
    repeats: int,
    device: torch.device,
    *,
    unit: str,
    per_item: float,
    detail: Mapping[str, Any] | None = None,
) -> Measured:
    """A row of items/s times `per_item`, in `unit` (TFLOP/s, GB/s), after one warm-up."""
    measured = measure_rate(name, work, repeats, device)
    speeds = [rate * per_item for rate in measured.values]
    return Measured(name=name, values=speeds, unit=unit, detail=detail or {}, gpu=measured.gpu)


def for_seconds(launch: Callable[[], object], seconds: float, device: torch.device, per_launch: int) -> Work:
    """Launches for about `seconds`, a few launches ahead of the device; each counts `per_launch` images."""

    def work() -> int:
        start, launches = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            launch()
            launches += 1
            if launches % 4 == 0 or device.type == "cpu":
                finish(device)
        finish(device)
        return launches * per_launch

    return work


def finish(device: torch.device) -> None:
    """Wait until the device has done everything launched on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended, user and system."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peak_host_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
