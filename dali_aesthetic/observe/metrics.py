"""The metrics of a run, listed in `docs/metrics.md` too, and the endpoint that Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from dali_aesthetic.config import ConfigError
from dali_aesthetic.observe.nvml import GpuReading, Gpus
from dali_aesthetic.stats import RunStats, Tally
from dali_aesthetic.types import Status
from dali_aesthetic.version import __version__

if TYPE_CHECKING:
    from prometheus_client import Metric as Family


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
        if status is not Status.OK:
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
