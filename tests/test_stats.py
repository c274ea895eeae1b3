"""Counters add up over workers, and the stage that works most bounds the run."""

from __future__ import annotations

import time

import pytest

from dali_aesthetic.overlap import StageTimes
from dali_aesthetic.stats import RunStats, Tally
from dali_aesthetic.types import ImageHeader, Route, ShardReport, Status


def header(status: Status) -> ImageHeader:
    return ImageHeader(format="jpeg", width=1, height=1, route=Route.DALI, status=status)


def stage(name: str, seconds: float, full: float, empty: float) -> StageTimes:
    return StageTimes(name, 10, full, empty, started_at=100.0, ended_at=100.0 + seconds)


def test_samples_are_counted_by_status() -> None:
    stats = RunStats()
    stats.add((header(Status.OK), header(Status.TRUNCATED)), num_kept=1)
    stats.add((header(Status.OK), header(Status.OK), header(Status.EMPTY)), num_kept=0)
    assert (stats.num_samples, stats.num_scored, stats.num_bad, stats.num_kept) == (5, 3, 2, 1)
    assert stats.statuses == {"ok": 3, "truncated": 1, "empty": 1}


def test_failed_and_damaged_shards_are_told_apart() -> None:
    stats = RunStats()
    stats.reports += [
        ShardReport(name="a", source="a"),
        ShardReport(name="b", source="b", damage="cut"),
        ShardReport(name="c", source="c", error="no tar"),
    ]
    assert len(stats.reports) == len(list(stats.reports)) == 3
    assert [report.name for report in stats.damaged] == ["b"]
    assert [report.name for report in stats.failed] == ["c"]


def test_waiting_is_taken_off_each_stages_work() -> None:
    stats = RunStats(waited_for_device=1.0, wrote=0.5)
    # storage works 2 of 10 s; decode waits 1 for it and 6 for room; encode waits 3 for decode.
    stats.stages = [stage("storage", 10, 8, 1), stage("decode", 10, 6, 3), stage("encode", 10, 0, 6)]
    assert stats.work_times() == {"storage": 2.0, "decode": 3.0, "encode": 8.0, "sink": 0.5}
    assert stats.bound_by() == "", "nothing came through"
    stats.num_samples = 1
    assert stats.bound_by() == "encode"


@pytest.mark.parametrize(("waited", "bound"), [(7.0, "decode: JPEG engine"), (3.0, "decode: CPU cores")])
def test_decoding_is_bound_by_what_it_waits_for_most(waited: float, bound: str) -> None:
    stats = RunStats(num_samples=1, engine=StageTimes("decode: JPEG engine", blocked_on_empty=waited))
    stats.stages = [stage("storage", 10, 8, 0), stage("decode", 10, 0, 9), stage("encode", 10, 0, 0)]
    assert stats.bound_by() == bound
    run = RunStats()
    for name in ("GPU 0", "GPU 1"):
        run.set_worker(name, stats.tally())
    assert run.bound_by() == bound


def test_first_times_appear_as_they_come_and_stay() -> None:
    stats = RunStats(started_at=time.perf_counter() - 10)
    assert stats.first_times() == {}
    stats.stages = [
        StageTimes("storage", first_at=stats.started_at + 1),
        StageTimes("decode", first_at=stats.started_at + 3),
        StageTimes("encode"),
    ]
    stats.add_reports([ShardReport(name="a", source="a", error="no tar")], 0.5)
    assert stats.first_times() == {"storage": pytest.approx(1), "decode": pytest.approx(3)}
    stats.add_wait(0.25)
    stats.add_reports([ShardReport(name="b", source="b")], 0.5)
    first = stats.first_times()
    assert list(first) == ["storage", "decode", "scores", "commit"]
    assert 10 <= first["scores"] <= first["commit"]
    stats.add_wait(0.25)
    stats.add_reports([ShardReport(name="c", source="c")], 0.5)
    assert stats.first_times() == first
    assert (stats.waited_for_device, stats.wrote, len(stats.reports)) == (0.5, 1.5, 3)


def test_nothing_bounds_a_run_before_there_is_work() -> None:
    assert RunStats().bound_by() == ""


def test_the_clock_stops_at_the_end() -> None:
    stats = RunStats()
    stats.finish()
    assert stats.seconds == stats.seconds


def test_tallies_of_workers_add_up_to_the_run() -> None:
    one, other = RunStats(), RunStats(waited_for_device=2.0)
    one.add((header(Status.OK), header(Status.EMPTY)), 1, {"high": 1})
    other.add((header(Status.OK),), 0, {"high": 0, "premium": 2})
    run = RunStats()
    run.set_worker("a", Tally(num_samples=99))
    run.set_worker("a", one.tally())
    run.set_worker("b", other.tally())
    assert (run.num_samples, run.num_scored, run.num_bad, run.num_kept) == (3, 2, 1, 1)
    assert run.presets == {"high": 1, "premium": 2}
    assert run.work_times()["encode"] == 2.0
    assert run.bound_by() == "encode"


def test_streams_of_one_worker_add_their_seconds() -> None:
    both = Tally(num_samples=1, seconds=2.0, work={"sink": 1.0}) + Tally(seconds=3.0, work={"decode": 0.5})
    assert (both.num_samples, both.seconds, both.work) == (1, 5.0, {"sink": 1.0, "decode": 0.5})


def test_all_reports_are_counted_and_problems_are_kept() -> None:
    stats = RunStats()
    stats.reports.append(ShardReport(name="bad", source="bad", error="no tar"))
    stats.reports += [ShardReport(name=str(i), source="") for i in range(5000)]
    assert len(stats.reports) == 5001
    assert [report.name for report in stats.failed] == ["bad"]
    assert len(list(stats.reports)) == 1001
    assert [(number, report.name) for number, report in stats.reports.since(4999)] == [
        (4999, "4998"),
        (5000, "4999"),
    ]
    assert stats.reports.since(5001) == []


def test_committed_reports_add_up() -> None:
    stats = RunStats()
    one = ShardReport(name="a", source="", num_samples=3, num_kept=1, statuses={"ok": 3}, bytes_kept=7)
    stats.reports += [one, one, ShardReport(name="c", source="", error="no tar")]
    assert stats.reports.committed == Tally(num_samples=6, num_kept=2, statuses={"ok": 6})
    assert stats.reports.bytes_kept == 14
