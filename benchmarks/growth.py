"""How cost grows: with the batch size, and with the number of shards that the same samples lie in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.dataset import cut_dataset
from benchmarks.record import Measured, Record
from benchmarks.throughput import NOTHING, Bench, encoder_row, end_to_end_row
from dali_aesthetic.config import Config
from dali_aesthetic.launch.worker import build_worker

GPU_BATCHES = (32, 64, 128, 256, 512, 1019)
CPU_BATCHES = (1, 4, 16)


def batch_growth(
    record: Record, config: Config, folder: Path, batches: Sequence[int], repeats: int, seconds: float
) -> None:
    """The encoder at several batch sizes, with the device memory each needs."""
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
    """End to end over many small shards: what a shard costs beside its samples."""
    for count in counts:
        if record.has(name := f"end to end, {count} shards of {per_shard}"):
            continue
        pattern = cut_dataset(folder / f"{count}-shards", source, count, per_shard)
        # Many shards are a long run, which needs no other to warm up.
        warm_ups = int(count < 100)
        measure = partial(end_to_end_row, bench, name, (pattern,), NOTHING, warm_ups=warm_ups)
        record.add(_with_memory(measure, bench.device))


def _with_memory(measure: Callable[[], Measured], device: torch.device) -> Measured:
    """The row, with the most device memory that torch held for tensors meanwhile; DALI's own is not in it."""
    if device.type != "cuda":
        return measure()
    torch.cuda.reset_peak_memory_stats(device)
    row = measure()
    peak = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return replace(row, detail={**row.detail, "peak_device_mib": peak})
