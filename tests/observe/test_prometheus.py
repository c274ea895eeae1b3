"""Real scrapes over HTTP, before, during and after a real run."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.launch.run import run
from dali_aesthetic.observe import observing
from dali_aesthetic.observe.metrics import METRICS, PREFIX
from dali_aesthetic.overlap import every
from dali_aesthetic.stats import RunStats, Tally

Scrape = dict[tuple[str, tuple[str, ...]], float]


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


def test_it_ends_with_a_run_that_fails(config: Callable[..., Config]) -> None:
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


def test_nothing_is_served_where_nothing_is_asked_for(config: Callable[..., Config]) -> None:
    with observing(config(), None) as watch:
        assert watch is None
