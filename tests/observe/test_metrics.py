"""The metrics of a run match the document and its counters; Prometheus scrapes them over HTTP."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.launch.run import run
from dali_aesthetic.observe import observing
from dali_aesthetic.observe.metrics import METRICS, ONE_WORKER, PREFIX, GpuReading, Value, read_metrics
from dali_aesthetic.overlap import every
from dali_aesthetic.stats import RunStats, Tally
from dali_aesthetic.types import ShardReport

Scrape = dict[tuple[str, tuple[str, ...]], float]
DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
GPU = GpuReading("0", dict.fromkeys((m.name[4:] for m in METRICS if m.name.startswith("gpu_")), 1.0))


def test_the_documented_names_kinds_and_labels_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(dali_\w+)` \| (\w+) \| (.*?) \|", DOCUMENT.read_text(), re.MULTILINE)
    listed = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    info = {f"{PREFIX}info": ("gauge", ("version",))}
    assert listed == {PREFIX + m.name: (m.kind, m.labels) for m in METRICS} | info


def test_a_run_has_every_metric_with_its_labels(config: Callable[..., Config]) -> None:
    stats = run(config()).stats
    values = list(read_metrics(stats, 4, [GPU]))
    labels = {metric.name: metric.labels for metric in METRICS}
    assert {value.name for value in values} == labels.keys()
    assert all(len(value.labels) == len(labels[value.name]) for value in values)
    assert len({value[:2] for value in values}) == len(values), "a time series comes once"
    found = {value[:2]: value.value for value in values}
    assert found["samples_total", (ONE_WORKER,)] == 36
    assert found["kept_total", (ONE_WORKER,)] == stats.num_kept
    assert found["bad_total", (ONE_WORKER, "empty")] == 3
    assert found["bad_total", (ONE_WORKER, "undecodable")] == 3
    assert found["bad_total", (ONE_WORKER, "too_large")] == 0, "what didn't happen is 0, not missing"
    assert found["shards_planned", ()] == 4
    assert [found["shards_total", (name,)] for name in ("committed", "damaged", "failed")] == [3, 0, 1]
    assert found["bytes_kept_total", ()] == sum(report.bytes_kept for report in stats.reports)
    for stage in ("storage", "decode", "encode"):
        assert found["queue_wait_seconds_total", (ONE_WORKER, stage, "consumer")] > 0
        assert ("stage_work_seconds_total", (ONE_WORKER, stage)) in found
    assert found["run_seconds", ()] == pytest.approx(stats.seconds)


def test_each_of_several_workers_has_its_own_series() -> None:
    stats = RunStats()
    waits = {("decode", "consumer"): 2.0}
    stats.set_worker("GPU 0", Tally(num_samples=10, statuses={"ok": 9, "empty": 1}, seconds=2, waits=waits))
    stats.set_worker("GPU 1", Tally(num_samples=30, statuses={"ok": 30}, seconds=3, waits=waits))
    stats.reports.append(ShardReport(name="a", source="a", damage="cut", bytes_kept=5))
    values = list(read_metrics(stats, 2))
    assert Value("samples_total", ("GPU 0",), 10) in values
    assert Value("samples_per_second", ("GPU 1",), 10) in values
    assert Value("bad_total", ("GPU 0", "empty"), 1) in values
    assert Value("queue_wait_seconds_total", ("GPU 1", "decode", "consumer"), 2.0) in values
    assert Value("shards_total", ("damaged",), 1) in values
    assert not [value for value in values if ONE_WORKER in value.labels]
    assert stats.tally().num_samples == 40


def test_tallies_add_their_waits() -> None:
    one = Tally(waits={("decode", "consumer"): 1.0})
    other = Tally(waits={("decode", "consumer"): 2.0, ("encode", "producer"): 3.0})
    assert (one + other).waits == {("decode", "consumer"): 3.0, ("encode", "producer"): 3.0}


def test_no_two_metrics_are_one_family() -> None:
    """In OpenMetrics a counter's family has no `_total`."""
    families = [metric.name.removesuffix("_total") for metric in METRICS]
    assert len(set(families)) == len(families)
    assert {m.name for m in METRICS if m.name.endswith("_total")} == {
        m.name for m in METRICS if m.kind == "counter"
    }


def scrape(url: str) -> Scrape:
    """Values by name without the prefix and label values in order, after a check of the types."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    kinds = {metric.name.removesuffix("_total"): metric.kind for metric in METRICS}
    labels = {metric.name: metric.labels for metric in METRICS} | {"info": ("version",)}
    values = {}
    for family in families:
        assert family.documentation
        if family.name != f"{PREFIX}info":
            assert family.type == kinds[family.name.removeprefix(PREFIX)]
        for sample in family.samples:
            name = sample.name.removeprefix(PREFIX)
            values[name, tuple(sample.labels[label] for label in labels[name])] = sample.value
    return values


def test_a_run_is_scraped_while_it_works(config: Callable[..., Config]) -> None:
    wanted = config(observe={"metrics_port": 0})
    said: list[str] = []
    during: list[Scrape] = []

    @contextmanager
    def look(stats: RunStats, num_shards: int) -> Iterator[None]:
        with every(0.02, lambda: during.append(scrape(url)), "scrape"):
            yield

    with observing(wanted, look, said.append) as watch:
        (text,) = said
        url = text.removeprefix("metrics: ")
        assert url.startswith("http://127.0.0.1:"), "nobody outside is served unless told so"
        before = scrape(url)
        assert before["samples_total", ("main",)] == 0
        result = run(wanted, watch=watch)
        after = scrape(url)
    assert during, "scraped while the loop ran"
    counts = [before, *during, after]
    assert all(
        one["samples_total", ("main",)] <= two["samples_total", ("main",)] for one, two in pairwise(counts)
    )
    assert after["samples_total", ("main",)] == result.stats.num_samples == 36
    assert after["kept_total", ("main",)] == result.stats.num_kept
    assert after["bad_total", ("main", "empty")] == 3
    assert after["shards_total", ("failed",)] == 1
    assert after["shards_planned", ()] == 4
    with pytest.raises(urllib.error.URLError):
        scrape(url)


def test_counters_do_not_fall_when_a_worker_dies(config: Callable[..., Config]) -> None:
    said: list[str] = []
    stats = RunStats()
    with observing(config(observe={"metrics_port": 0}), None, said.append) as watch:
        assert watch is not None
        seen = []
        with watch(stats, 2):
            for count, seconds in ((1000, 10.0), (900, 12.0), (1100, 13.0)):
                stats.set_worker("GPU 0", Tally(num_samples=count, seconds=seconds))
                values = scrape(said[0].removeprefix("metrics: "))
                seen.append([values[name, ("GPU 0",)] for name in ("samples_total", "samples_per_second")])
        with watch(RunStats(), 1):
            anew = scrape(said[0].removeprefix("metrics: "))
    assert seen == [[1000, 100], [1000, 75], [1100, pytest.approx(1100 / 13)]], "a gauge is what it is now"
    assert anew["samples_total", ("main",)] == 0


def test_the_endpoint_ends_with_a_run_that_fails(config: Callable[..., Config]) -> None:
    said: list[str] = []
    with (
        pytest.raises(RuntimeError, match="broken"),
        observing(config(observe={"metrics_port": 0}), None, said.append),
    ):
        raise RuntimeError("broken")
    with pytest.raises(urllib.error.URLError):
        scrape(said[0].removeprefix("metrics: "))


def test_a_port_in_use_is_an_error_before_anything_is_loaded(config: Callable[..., Config]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"--metrics-port {port}: can't listen on 127.0.0.1.*another"),
            observing(config(observe={"metrics_port": port}), None),
        ):
            pass


def test_no_endpoint_without_a_port(config: Callable[..., Config]) -> None:
    with observing(config(), None) as watch:
        assert watch is None
