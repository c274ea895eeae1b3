"""Growth of cost with the batch size, and with the number of shards that hold the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.bench import NOTHING, Bench, calibrated, encoder_row, end_to_end_row, make_bench
from benchmarks.datasets import cut_dataset
from benchmarks.results import Measured, Record
from benchmarks.settings import Settings
from dali_aesthetic.config import Config
from dali_aesthetic.launch.worker import build_worker

GPU_BATCHES = (32, 64, 128, 256, 512, 1019)
CPU_BATCHES = (1, 4, 16)


def measure(settings: Settings) -> None:
    """Growth of cost with the batch size and the number of shards."""
    record = settings.record("growth")
    config = calibrated(settings.config(settings.datasets.make()))
    batches = list(GPU_BATCHES if settings.on_gpu else CPU_BATCHES)
    batches = batches[1::2] if settings.quick else batches
    batch_growth(record, config, settings.data, batches, 1, settings.num_seconds / 2)
    bench = make_bench(settings)
    bench.repeats = 1
    counts = (1, 100, 10_000) if settings.on_gpu else (1, 100) if settings.quick else (1, 10, 100, 1000)
    source = Path(settings.datasets.make()).parent / "bench-00000.tar"
    shard_growth(record, bench, source, settings.data / "small", counts, per_shard=8)
    bench.worker.decoder.close()
    record.note("complete", True)


def batch_growth(
    record: Record, config: Config, folder: Path, batches: Sequence[int], repeats: int, seconds: float
) -> None:
    """The encoder at several batch sizes, with the device memory of each."""
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    for batch_size in batches:
        if record.has(name := f"encoder, batch {batch_size}"):
            continue
        decode = config.decode.model_copy(update={"batch_size": batch_size})
        worker = build_worker(config.model_copy(update={"decode": decode}))
        bench = Bench(config=config, worker=worker, folder=folder, repeats=repeats, seconds=seconds)
        record.add(_with_memory(partial(encoder_row, bench, name=name), device))
        worker.decoder.close()
        del bench, worker


def shard_growth(
    record: Record, bench: Bench, source: Path, folder: Path, counts: tuple[int, ...], per_shard: int
) -> None:
    """End to end over small shards, which shows the cost of a shard itself."""
    for count in counts:
        if record.has(name := f"end to end, {count} shards of {per_shard}"):
            continue
        pattern = cut_dataset(folder / f"{count}-shards", source, count, per_shard)
        # A run over many shards is long enough without a warm-up.
        warm_ups = int(count < 100)
        measure = partial(end_to_end_row, bench, name, (pattern,), NOTHING, warm_ups=warm_ups)
        record.add(_with_memory(measure, bench.device))


def _with_memory(measure: Callable[[], Measured], device: torch.device) -> Measured:
    """The row with the peak of device memory that torch held for tensors; DALI's memory is not in it."""
    if device.type != "cuda":
        return measure()
    torch.cuda.reset_peak_memory_stats(device)
    row = measure()
    peak = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return replace(row, detail={**row.detail, "peak_device_mib": peak})
