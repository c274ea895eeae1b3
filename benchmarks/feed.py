"""What decoding delivers beside a busy encoder: that, not the decoder alone, bounds what a run can reach.

The package's decoder goes through batches that are read already, and nobody waits for its pixels; the encoder
encodes the same pixels all the time. Beside the way the package runs there are two that it avoids: with the
driver's own 8 hardware queues, and with the encoder replayed as a CUDA graph. Each way is a process.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from torch import Tensor

from benchmarks.busy import BusyEncoder, Replayed
from benchmarks.child import in_child
from benchmarks.machine import GpuSampler
from benchmarks.record import Measured, Record
from benchmarks.settings import Settings
from benchmarks.throughput import (
    Bench,
    decoding,
    encoded_batches,
    encoder_detail,
    first_pixels,
    make_bench,
)
from dali_aesthetic.types import ImageBatch

ALONE = "decode alone"
QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"
FEW_QUEUES, GRAPH = "8 hardware queues", "as a CUDA graph"
GPU_WAYS = (("torchscript", "fp16"), ("fused", "fp16"), ("fused", "fp8"))
CPU_WAYS = (("eager", "fp32"),)
NOTE = (
    "Images/s that the package's decoder delivers while an encoder is kept busy on the same device, three of "
    "its batches launched ahead. The limit is the decoder alone in the same process. encoder_beside and "
    "encoder_alone: the encoder's images/s meanwhile, and without the decoder."
)
_BOUND_S = 60


@dataclass(slots=True)
class Fed:
    """Images/s of each window, and when the first one began (`perf_counter`'s seconds)."""

    rates: list[float] = field(default_factory=list)
    began: float = 0.0


def measure_feed(record: Record, settings: Settings) -> bool:
    """Every encoder that runs here as in a run; then with few queues, and as a graph. Whether all is done."""
    record.note("note", NOTE)
    ways = (
        [(settings.backend, settings.precision)]
        if (settings.backend, settings.precision) != ("auto", "auto")
        else list(GPU_WAYS if settings.on_gpu else CPU_WAYS)
    )
    bound_s = _BOUND_S * (1 if settings.quick and settings.on_gpu else 10)
    ended = []
    for how in ("", FEW_QUEUES, GRAPH) if settings.on_gpu else ("",):
        for backend, precision in ways:
            name = title(backend, precision)
            if how and record.row(name) is None:
                continue  # it can't run here, and the record says why
            name = title(backend, precision, how)
            env = {QUEUES: "8"} if how == FEW_QUEUES else None
            words = (name, backend, precision, how)
            ended.append(in_child(measure_beside, record, settings, name, *words, bound_s=bound_s, env=env))
    return all(ended)


def title(backend: str, precision: str, how: str = "") -> str:
    """The name of a row."""
    return f"decode beside {backend} {precision}" + (f", {how}" if how else "")


def measure_beside(
    record: Record, settings: Settings, name: str, backend: str, precision: str, how: str
) -> None:
    """One way: the encoder alone, the decoder alone, and both at a time."""
    bench = make_bench(settings, backend=backend, precision=precision)
    images_NHWC, window_s = first_pixels(bench), bench.seconds / 2
    if how == GRAPH:
        bench.worker.scorer.backend = Replayed(bench.worker.scorer.backend, images_NHWC)
    batches = list(encoded_batches(bench, bench.config.input))
    encoder_alone = alone_rate(bench, images_NHWC)
    with decoding(bench, cycle(batches)) as decoded:
        decoder_alone = take(decoded, window_s, bench.repeats)
    if not record.has(ALONE):
        record.add(Measured(name=ALONE, values=decoder_alone.rates, detail=_around()))
    # The encoder is busy before the first feed, and stops before the decoder has to empty itself.
    with (
        decoding(bench, cycle(batches)) as decoded,
        GpuSampler(bench.device) as gpu,
        BusyEncoder(bench.worker.scorer, images_NHWC) as encoder,
    ):
        fed = take(decoded, window_s, bench.repeats)
        beside = encoder.rate(fed.began)
    detail = {
        **encoder_detail(bench),
        **_around(),
        "encoder_beside": round(beside, 1),
        "encoder_alone": round(encoder_alone, 1),
        "encoder_share": round(beside / encoder_alone, 4),
    }
    limit = statistics.median(decoder_alone.rates)
    record.add(Measured(name=name, values=fed.rates, limit=limit, detail=detail, gpu=gpu.medians()))


def alone_rate(bench: Bench, images_NHWC: Tensor) -> float:
    """Images/s of the busy encoder with nothing beside it."""
    with BusyEncoder(bench.worker.scorer, images_NHWC) as encoder:
        time.sleep(bench.seconds)
    return encoder.rate()


def take(decoded: Iterator[ImageBatch], seconds: float, windows: int) -> Fed:
    """Images/s by window of about `seconds`, each a whole number of batches.

    The first batch counts for none: the decoder was idle before it.
    """
    fed = Fed()
    next(decoded)
    fed.began = start = time.perf_counter()
    count = 0
    while len(fed.rates) < windows:
        count += len(next(decoded).rows_N)
        if (elapsed := time.perf_counter() - start) >= seconds:
            fed.rates.append(count / elapsed)
            start, count = time.perf_counter(), 0
    return fed


def _around() -> dict[str, Any]:
    """The number of hardware queues, where it is set."""
    return {"hardware_queues": int(os.environ[QUEUES])} if QUEUES in os.environ else {}
