"""Images per second of decode only, encoder only and end to end, on the device at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import GpuSampler
from dali_aesthetic.config import Config
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.launch.local import run
from dali_aesthetic.launch.worker import Worker, build_worker
from dali_aesthetic.overlap import ahead
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.read import read_shards


@dataclass(frozen=True, slots=True)
class Measured:
    """Images per second of each repeat, and the GPU's medians meanwhile."""

    stage: str
    rates: list[float]
    gpu: dict[str, float]
    detail: dict[str, Any]

    def as_row(self) -> dict[str, Any]:
        """Median, spread and detail, ready for JSON."""
        return {
            "stage": self.stage,
            "images_per_second": round(statistics.median(self.rates), 1),
            "min": round(min(self.rates), 1),
            "max": round(max(self.rates), 1),
            "repeats": len(self.rates),
            **self.detail,
            "gpu": self.gpu,
        }


def measure(config: Config, folder: Path, repeats: int) -> list[Measured]:
    """The three stages, each `repeats` times, on the same shards and the same weights."""
    worker = build_worker(config)
    stages: dict[str, Callable[[], float]] = {
        "decode": lambda: decode_rate(config, worker),
        "encoder": lambda: encoder_rate(worker, seconds=4.0),
    }
    measured = [_repeat(name, work, repeats, worker) for name, work in stages.items()]
    worker.decoder.close()
    return [*measured, _end_to_end(config, folder, repeats, worker.device)]


def decode_rate(config: Config, worker: Worker) -> float:
    """Tar scan, header check, decode and resize of every image; nothing is encoded. Images/s."""
    samples = read_shards(plan_shards(config.input))
    batches = ahead(fill_batches(samples, worker.scorer.batch_size, worker.limits), 2, "storage")
    start, num_images = time.perf_counter(), 0
    for batch in worker.decoder.decode(batches):
        num_images += len(batch.rows_N)
    return num_images / (time.perf_counter() - start)


def encoder_rate(worker: Worker, seconds: float) -> float:
    """Pixels on the device to scores on the device, random pixels, full batches. Images/s."""
    scorer = worker.scorer
    size = scorer.image_size
    images_NHWC = torch.randint(
        0, 256, (scorer.batch_size, size, size, 3), dtype=torch.uint8, device=worker.device
    )
    for _ in range(3):
        scorer.backend(images_NHWC)
    _finish(worker.device)
    start, batches = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        scorer.backend(images_NHWC)
        batches += 1
        if batches % 4 == 0:
            _finish(worker.device)
    _finish(worker.device)
    return batches * scorer.batch_size / (time.perf_counter() - start)


def _end_to_end(config: Config, folder: Path, repeats: int, device: torch.device) -> Measured:
    """From tars to committed output, model loading excluded; a fresh output each time."""
    rates: list[float] = []
    detail: dict[str, Any] = {}
    with GpuSampler(device) as gpu:
        for number in range(repeats + 1):
            output = str(folder / f"output-{number}")
            stats = run(config.model_copy(update={"output": output})).stats
            if number == 0:
                continue  # warm-up: kernels, decoder buffers, page cache
            rates.append(stats.num_samples / stats.seconds)
            work = {name: round(seconds, 2) for name, seconds in stats.work_times().items()}
            detail = {"kept": stats.num_kept, "samples": stats.num_samples, "work_seconds": work}
            detail["bound_by"] = stats.bound_by()
    return Measured("end to end", rates, gpu.medians(), detail)


def _repeat(name: str, work: Callable[[], float], repeats: int, worker: Worker) -> Measured:
    work()
    with GpuSampler(worker.device) as gpu:
        rates = [work() for _ in range(repeats)]
    backend = worker.scorer.backend
    detail = {"batch_size": worker.scorer.batch_size}
    if name == "encoder":
        detail |= {"backend": backend.name, "precision": backend.precision}
    return Measured(name, rates, gpu.medians(), detail)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
