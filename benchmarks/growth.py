"""How cost grows: with the batch size, and with the number of shards that the same samples lie in."""

from __future__ import annotations

from collections.abc import Sequence
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
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        row = encoder_row(bench, name=name)
        record.add(_with_memory(row, device))
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
        record.add(end_to_end_row(bench, name, (pattern,), NOTHING, warm_ups=int(count < 100)))


def _with_memory(row: Measured, device: torch.device) -> Measured:
    if device.type != "cuda":
        return row
    peak = round(torch.cuda.max_memory_allocated(device) / 2**20)
    detail = {**row.detail, "peak_device_mib": peak}
    return Measured(name=row.name, values=row.values, limit=row.limit, detail=detail, gpu=row.gpu)
