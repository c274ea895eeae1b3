"""The progress line of a run and the summary table at its end."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from rich.console import Console

from dali_aesthetic.config import Config
from dali_aesthetic.display import (
    Progress,
    as_dict,
    clock,
    logged_on,
    preset_rows,
    problems,
    share,
    summary,
    watch_on,
)
from dali_aesthetic.launch.engine import RunResult
from dali_aesthetic.stats import RunStats, Tally
from dali_aesthetic.threshold import preset_counts
from dali_aesthetic.types import ImageHeader, Route, ShardReport, Status


@pytest.fixture
def stats() -> RunStats:
    stats = RunStats()
    good = ImageHeader(format="jpeg", width=1, height=1, route=Route.DALI)
    bad = ImageHeader(format="", width=0, height=0, route=Route.NOBODY, status=Status.EMPTY)
    stats.add((good, good, good, good, bad), num_kept=1)
    stats.reports.append(ShardReport(name="a", source="a"))
    return stats


def test_the_progress_line_has_rate_kept_share_bad_count_and_time_left(stats: RunStats) -> None:
    line = Progress(stats, 3).line()
    for part in ("1/3 shards", "5 images", "images/s", "kept 25.0%", "bad 1", "ETA"):
        assert part in line


def test_the_summary_names_damaged_and_failed_shards(stats: RunStats) -> None:
    stats.reports.append(ShardReport(name="b", source="b.tar", damage="cut at byte 7"))
    stats.reports.append(ShardReport(name="c", source="[c].tar", error="no tar"))
    console = Console(file=io.StringIO(), width=120)
    config = Config(input=("x",), output="out")
    summary(RunResult(stats=stats, num_shards=4, num_skipped=1, threshold=config.threshold), config, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 committed, 1 failed" in text
    assert "1 of 4 committed before" in text
    assert "1 (1 empty)" in text
    assert "damaged b.tar: cut at byte 7" in text
    assert "failed [c].tar: no tar" in text


def test_a_rerun_tells_the_outputs_totals_beside_its_own(stats: RunStats) -> None:
    earlier = Tally(num_samples=10, num_kept=4, statuses={"ok": 8, "empty": 2}, seconds=3.0)
    config = Config(input=("x",), output="out")
    result = RunResult(
        stats=RunStats(started_at=1.0, ended_at=3.0),
        num_shards=2,
        num_skipped=2,
        threshold=config.threshold,
        earlier=earlier,
    )
    console = Console(file=io.StringIO(), width=120)
    summary(result, config, console)
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "samples 0 in this start" in text
    assert "in the output 10 samples, kept 4 (50.0% of the scored)" in text
    assert "2.0 images/s in 0:05, all starts together" in text
    told = as_dict(result, config)
    assert (told["samples"], told["output_samples"], told["output_kept"]) == (0, 10, 4)
    assert told["output_seconds"] == 5.0
    unknown = replace(result, earlier=replace(earlier, seconds=0.0))
    assert as_dict(unknown, config)["output_seconds"] is None


def test_shards_that_fail_of_one_cause_are_one_line(stats: RunStats) -> None:
    for n in range(31):
        source = f"s3://b/{n}.tar"
        error = f"{source} can't be read: there is no such object"
        stats.reports.append(ShardReport(name=f"{n}", source=source, error=error))
    stats.reports.append(ShardReport(name="x", source="x.tar", error="x.tar: cut"))
    console = Console(file=io.StringIO(), width=80)
    problems(stats, console)
    many, one = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    named = ", ".join(f"s3://b/{n}.tar" for n in range(10))
    assert many == f"failed 31 shards: can't be read: there is no such object ({named}, ...)"
    assert one == "failed x.tar: cut"


def test_causes_that_differ_in_numbers_only_are_one_line(stats: RunStats) -> None:
    for n in range(45):
        counts = f"{100 + n} of its {200 + n} samples are bad, more than --max-bad-fraction 0.5 allows"
        damage = f"cut at byte {n}, and the rest of a tar of a very long name is missing from there on"
        stats.reports.append(ShardReport(name=f"f{n}", source=f"f{n}.tar", error=f"f{n}.tar: {counts}"))
        stats.reports.append(ShardReport(name=f"d{n}", source=f"d{n}.tar", damage=damage))
    console = Console(file=io.StringIO(), width=80)
    problems(stats, console)
    damaged, failed = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert damaged.startswith("damaged 45 shards: the first: cut at byte 0, and")
    assert failed.startswith("failed 45 shards: the first: 100 of its 200 samples are bad, more")
    assert failed.endswith("f8.tar, f9.tar, ...)")


def test_warnings_are_counted_in_the_summary_and_its_json(stats: RunStats) -> None:
    apart = "members that came twice in one sample"
    for n in range(2000):
        report = ShardReport(
            name=f"{n}", source=f"[{n}].tar", warnings=(f"{apart}: 2 (first: 'a', 'b')", "odd end")
        )
        stats.reports.append(report)
    console = Console(file=io.StringIO(), width=80)
    problems(stats, console)
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        f"warning {apart}: 4,000 in 2,000 shards, first in [0].tar (first: 'a', 'b')\n"
        "warning odd end: 2,000 in 2,000 shards, first in [0].tar\n"
    )
    config = Config(input=("x",), output="out")
    result = RunResult(stats=stats, num_shards=4, num_skipped=1, threshold=config.threshold)
    found = as_dict(result, config)["warnings"]
    assert found[apart] == {"count": 4000, "shards": 2000, "first": "[0].tar (first: 'a', 'b')"}


def test_the_summary_shows_what_each_preset_would_keep_of_this_data() -> None:
    header = ImageHeader(format="jpeg", width=1, height=1, route=Route.DALI)
    scores = np.array([2.9, 3.0, 4.6, 5.0, 6.3, np.nan], np.float32)
    stats = RunStats()
    for part in (scores[:2], scores[2:5]):
        stats.add((header,) * len(part), 0, preset_counts(part))
    assert preset_rows(stats, "laion-v1") == [
        ("presets keep", "permissive 0.3: 80.0%, standard 0.5: 40.0%, high 0.6: 20.0%, premium 0.7: 0%")
    ]
    rows = dict(preset_rows(stats, "laion-v2"))
    assert "4.5: 60.0% (50.6%), " in rows["LAION's cuts"]
    assert "6.25: 20.0% (0.13%), " in rows["LAION's cuts"]
    assert preset_rows(RunStats(), "laion-v2") == []


def test_a_log_file_gets_a_cause_ten_times_and_each_death_and_damage(stats: RunStats) -> None:
    console = Console(file=io.StringIO(), width=40)
    with logged_on(console), watch_on(console, stats, 3, log_interval=3600.0):
        for n in range(31):
            error = f"[{n}].tar can't be read:\nthere is no such object in the whole of this bucket"
            stats.reports.append(ShardReport(name=f"{n}", source=f"[{n}].tar", error=error))
        stats.reports += [
            ShardReport(name=f"{n}", source=f"{n}.tar", damage=f"cut at byte {n}") for n in range(31)
        ]
        stats.incidents.append("GPU 1 died by SIGKILL")
    lines = [line[20:] for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    cause = "can't be read: there is no such object in the whole of this bucket"
    assert lines == [
        *(f"failed [{n}].tar: {cause}" for n in range(10)),
        f"further shards of this cause are in the summary: {cause}",
        *(f"damaged {n}.tar: cut at byte {n}" for n in range(10)),
        "further shards of this cause are in the summary: cut at byte 10",
        "worker GPU 1 died by SIGKILL",
    ]


def test_what_the_package_logs_comes_to_the_console_only_within_the_block() -> None:
    console, log = Console(file=io.StringIO(), width=20), logging.getLogger("dali_aesthetic.any.module")
    with logged_on(console):
        log.info("[bold]loading %s", "a model of a long name")
        log.debug("detail")
        log.warning("odd")
    log.warning("after")
    first, second = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    datetime.fromisoformat(first[:19])
    assert (first[20:], second[20:]) == ("[bold]loading a model of a long name", "warning odd")
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system=None)
    with logged_on(terminal):
        log.info("loading a model")
    assert terminal.file.getvalue() == "loading a model\n"  # type: ignore[attr-defined]


def test_a_terminal_gets_a_progress_line(stats: RunStats) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with watch_on(console, stats, 3):
        pass
    assert "1/3 shards" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65, "1:05"), (3723, "1:02:03")])
def test_seconds_are_shown_as_a_clock(seconds: int, text: str) -> None:
    assert clock(seconds) == text


def test_a_share_of_nothing_is_a_dash() -> None:
    assert (share(1, 4), share(0, 0)) == ("25.0%", "-")


def test_each_worker_has_a_rate_on_the_progress_line() -> None:
    stats = RunStats()
    progress = Progress(stats, 3)
    assert progress.worker_line() == ""
    stats.set_worker("GPU 0", Tally(num_samples=0))
    progress.worker_line()
    stats.set_worker("GPU 0", Tally(num_samples=10**9))
    stats.set_worker("GPU 1", Tally())
    first, second = progress.worker_line().split(" · ")
    assert first.startswith("GPU 0 ")
    assert float(first.split()[2].removesuffix("/s").replace(",", "")) > 1000
    assert second == "GPU 1 0/s"


def test_the_summary_has_each_worker_and_the_incidents() -> None:
    stats = RunStats(incidents=["GPU 1 died by SIGKILL; redone: 2 shards"])
    stats.set_worker("GPU 0", Tally(num_samples=4, statuses={"ok": 4}, seconds=2.0))
    console = Console(file=io.StringIO(), width=120)
    config = Config(input=("x",), output="out")
    result = RunResult(stats=stats, num_shards=1, num_skipped=0, threshold=config.threshold)
    summary(result, config, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "4 samples, 2.0 images/s" in text
    assert "worker GPU 1 died by SIGKILL" in text
    assert as_dict(result, config)["workers"] == {"GPU 0": {"samples": 4, "seconds": 2.0}}
