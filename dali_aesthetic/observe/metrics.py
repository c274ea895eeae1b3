"""The metrics of a run: their names, and their values at one moment. `docs/metrics.md` has the same list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dali_aesthetic.observe.nvml import GpuReading
from dali_aesthetic.stats import RunStats, Tally
from dali_aesthetic.types import Status

PREFIX = "dali_aesthetic_"
ONE_WORKER = "main"
"""The `worker` of a run that one process does."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric without the prefix. A counter only rises while the command runs, a gauge is what it is now."""

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    help: str


class Value(NamedTuple):
    """One time series' value now: labels in the metric's order."""

    name: str
    labels: tuple[str, ...]
    value: float


METRICS = (
    Metric("samples_total", "counter", ("worker",), "Samples that went through, good or bad."),
    Metric("kept_total", "counter", ("worker",), "Samples within the threshold."),
    Metric("bad_total", "counter", ("worker", "reason"), "Samples that could not be scored, by status."),
    Metric("samples_per_second", "gauge", ("worker",), "Samples by the worker's time, since it began."),
    Metric(
        "stage_work_seconds_total", "counter", ("worker", "stage"), "Own work of a stage, waits taken off."
    ),
    Metric(
        "queue_wait_seconds_total",
        "counter",
        ("worker", "stage", "side"),
        "Waits at the queue behind a stage: of its consumer for an item, of the stage for room.",
    ),
    Metric(
        "shards_planned",
        "gauge",
        (),
        "Shards that this run has to do; those committed before are not counted.",
    ),
    Metric(
        "shards_total", "counter", ("result",), "Shards done: committed, damaged (committed in part), failed."
    ),
    Metric("bytes_kept_total", "counter", (), "Bytes of the kept samples of committed shards."),
    Metric("worker_deaths_total", "counter", (), "Workers that died and were replaced or given up."),
    Metric("run_seconds", "gauge", (), "Since the first shard was begun."),
    Metric("gpu_utilization_ratio", "gauge", ("gpu",), "Share of the last moment in which a kernel ran."),
    Metric("gpu_sm_clock_hertz", "gauge", ("gpu",), "Clock of the multiprocessors."),
    Metric("gpu_power_watts", "gauge", ("gpu",), "Power draw."),
    Metric("gpu_temperature_celsius", "gauge", ("gpu",), "Temperature of the chip."),
    Metric("gpu_memory_used_bytes", "gauge", ("gpu",), "Device memory in use, by any process."),
    Metric("gpu_memory_total_bytes", "gauge", ("gpu",), "Device memory there is."),
)


def read_metrics(stats: RunStats, num_shards: int, gpus: Sequence[GpuReading] = ()) -> Iterator[Value]:
    """Every time series now. `stats` may be counting meanwhile, in other threads."""
    workers = dict(stats.workers) or {ONE_WORKER: stats.tally()}
    for name, tally in workers.items():
        yield from _worker(name, tally)
    yield Value("shards_planned", (), num_shards)
    reports, failed, damaged = stats.reports, len(stats.failed), len(stats.damaged)
    for result, count in (
        ("committed", len(reports) - failed - damaged),
        ("damaged", damaged),
        ("failed", failed),
    ):
        yield Value("shards_total", (result,), count)
    yield Value("bytes_kept_total", (), reports.bytes_kept)
    yield Value("worker_deaths_total", (), len(stats.incidents))
    yield Value("run_seconds", (), stats.seconds)
    for gpu in gpus:
        yield from (Value(f"gpu_{what}", (gpu.name,), value) for what, value in gpu.values.items())


def _worker(name: str, tally: Tally) -> Iterator[Value]:
    yield Value("samples_total", (name,), tally.num_samples)
    yield Value("kept_total", (name,), tally.num_kept)
    for status in Status:
        if status is not Status.OK:
            yield Value("bad_total", (name, status.value), tally.statuses.get(status.value, 0))
    yield Value("samples_per_second", (name,), tally.num_samples / max(tally.seconds, 1e-9))
    for stage, seconds in tally.work.items():
        yield Value("stage_work_seconds_total", (name, stage), seconds)
    for (stage, side), seconds in tally.waits.items():
        yield Value("queue_wait_seconds_total", (name, stage, side), seconds)
