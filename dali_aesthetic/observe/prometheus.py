"""An endpoint that Prometheus scrapes, from the command's start to its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dali_aesthetic import __version__
from dali_aesthetic.config import ConfigError
from dali_aesthetic.observe.metrics import METRICS, PREFIX, read_metrics
from dali_aesthetic.observe.nvml import Gpus
from dali_aesthetic.stats import RunStats

if TYPE_CHECKING:
    from prometheus_client import Metric as Family

_COUNTERS = frozenset(metric.name for metric in METRICS if metric.kind == "counter")


class _Collector:
    """Reads the run when it is asked, so that a scrape has the values of its own moment."""

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
            families[name].add_metric(labels, self._risen(name, labels, value))
        yield from families.values()
        version = GaugeMetricFamily(f"{PREFIX}info", "Always 1; the version is a label.", labels=("version",))
        version.add_metric((__version__,), 1)
        yield version

    def _risen(self, name: str, labels: tuple[str, ...], value: float) -> float:
        """What a worker did not commit is taken off its counts when it dies; Prometheus takes a counter that
        falls for one that began anew, and would add all of it a second time."""
        if name not in _COUNTERS:
            return value
        highest = self._highest[name, labels] = max(value, self._highest.get((name, labels), 0.0))
        return highest


class Endpoint:
    """Serves at `port`; `watch` says whose counters to show, which stay after the run."""

    def __init__(self, collector: _Collector, host: str, port: int) -> None:
        self._collector, self.host, self.port = collector, host, port

    @property
    def url(self) -> str:
        """Where to scrape."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    @contextmanager
    def watch(self, stats: RunStats, num_shards: int) -> Iterator[None]:
        """Shows `stats` from now on."""
        self._collector.follow(stats, num_shards)
        yield


@contextmanager
def serve_metrics(host: str, port: int) -> Iterator[Endpoint]:
    """Serves for as long as the block runs; `port` 0 takes a free one. Raises ConfigError where it can't."""
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
