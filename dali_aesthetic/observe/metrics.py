"""The metrics of a run, NVML's of its GPUs among them, and the endpoint that Prometheus scrapes.

`docs/metrics.md` lists them too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dali_aesthetic.config import ConfigError
from dali_aesthetic.stats import RunStats, Tally
from dali_aesthetic.types import Status
from dali_aesthetic.version import __version__

if TYPE_CHECKING:
    from prometheus_client import Metric as Family


_VISIBLE = "CUDA_VISIBLE_DEVICES"
PREFIX = "dali_aesthetic_"
ONE_WORKER = "main"
"""The label `worker` of a run in one process."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric, named without the prefix. A counter only rises while the command runs; a gauge may fall."""

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    help: str


class Value(NamedTuple):
    """The value of one time series now, with its labels in the metric's order."""

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

_COUNTERS = frozenset(metric.name for metric in METRICS if metric.kind == "counter")


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


def read_metrics(stats: RunStats, num_shards: int, gpus: Sequence[GpuReading] = ()) -> Iterator[Value]:
    """The value of every time series now. Other threads may change `stats` meanwhile."""
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
        if status not in (Status.OK, Status.FILTERED):
            yield Value("bad_total", (name, status.value), tally.statuses.get(status.value, 0))
    yield Value("samples_per_second", (name,), tally.num_samples / max(tally.seconds, 1e-9))
    for stage, seconds in tally.work.items():
        yield Value("stage_work_seconds_total", (name, stage), seconds)
    for (stage, side), seconds in tally.waits.items():
        yield Value("queue_wait_seconds_total", (name, stage, side), seconds)


class _Collector:
    """Reads the run at each scrape, so that the values are current."""

    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus
        self.follow(RunStats(), 0)

    def follow(self, stats: RunStats, num_shards: int) -> None:
        """Shows `stats` from now on."""
        self._stats, self._num_shards = stats, num_shards
        self._highest: dict[tuple[str, tuple[str, ...]], float] = {}

    def collect(self) -> Iterator[Family]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families = {
            metric.name: (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(
                PREFIX + metric.name, metric.help, labels=metric.labels
            )
            for metric in METRICS
        }
        for name, labels, value in read_metrics(self._stats, self._num_shards, self._gpus.read()):
            families[name].add_metric(labels, self._monotonic(name, labels, value))
        yield from families.values()
        version = GaugeMetricFamily(f"{PREFIX}info", "Always 1; the version is a label.", labels=("version",))
        version.add_metric((__version__,), 1)
        yield version

    def _monotonic(self, name: str, labels: tuple[str, ...], value: float) -> float:
        """The highest value of a counter so far.

        A worker that dies loses what it did not commit. Prometheus takes a counter that falls for one that
        restarted, and would add all of it a second time."""
        if name not in _COUNTERS:
            return value
        highest = self._highest[name, labels] = max(value, self._highest.get((name, labels), 0.0))
        return highest


class Endpoint:
    """Serves at `port` the counters of the last run that was watched."""

    def __init__(self, collector: _Collector, host: str, port: int) -> None:
        self._collector, self.host, self.port = collector, host, port

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    @contextmanager
    def watch(self, stats: RunStats, num_shards: int) -> Iterator[None]:
        """Shows `stats` from now on."""
        self._collector.follow(stats, num_shards)
        yield


@contextmanager
def serve_metrics(host: str, port: int) -> Iterator[Endpoint]:
    """Serves while the block runs; `port` 0 takes a free one. Raises ConfigError where it can't listen."""
    from prometheus_client import CollectorRegistry, start_http_server

    gpus = Gpus()
    collector, registry = _Collector(gpus), CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        gpus.close()
        raise ConfigError(
            f"--metrics-port {port}: can't listen on {host}: {error}; give another one"
        ) from None
    try:
        yield Endpoint(collector, host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        gpus.close()
