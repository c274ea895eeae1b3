"""The metrics that documents name are those that a run has, with the values of its counters."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dali_aesthetic.config import Config
from dali_aesthetic.launch.run import run
from dali_aesthetic.observe.metrics import METRICS, ONE_WORKER, PREFIX, Value, read_metrics
from dali_aesthetic.observe.nvml import GpuReading
from dali_aesthetic.stats import RunStats, Tally
from dali_aesthetic.types import ShardReport

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
