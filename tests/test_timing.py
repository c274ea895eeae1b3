"""The lines of timing.jsonl: one for each committed shard, no reason to fail, read back as throughput."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from dali_aesthetic.config import Config
from dali_aesthetic.launch.run import run
from dali_aesthetic.layout import TIMING
from dali_aesthetic.stats import RunStats
from dali_aesthetic.timing import process_age, read_speed, timed
from dali_aesthetic.types import ShardReport

DONE = ShardReport(name="a/b", source="b.tar", num_samples=7, num_kept=2)
FAILED = ShardReport(name="c", source="c.tar", error="no tar")


def some(closed: list[bool]) -> Generator[ShardReport, None, None]:
    try:
        yield DONE
        yield FAILED
    finally:
        closed.append(True)


def test_a_committed_shard_gets_a_line_and_a_failed_one_none(tmp_path: Path) -> None:
    closed: list[bool] = []
    assert list(timed(some(closed), tmp_path, RunStats())) == [DONE, FAILED]
    (line,) = [json.loads(text) for text in (tmp_path / TIMING).read_text().splitlines()]
    assert (line["name"], line["samples"], line["kept"]) == ("a/b", 7, 2)
    assert line["seconds"] >= 0
    assert closed == [True]


def test_a_streams_first_line_tells_what_came_before(tmp_path: Path) -> None:
    stats = RunStats(started_at=10.0, scored_first_at=12.5)
    list(timed((report for report in (FAILED, DONE, DONE)), tmp_path, stats, {"weights": 1.23456}))
    first, second = (json.loads(text) for text in (tmp_path / TIMING).read_text().splitlines())
    assert (first["start"], first["first"]) == ({"weights": 1.235}, {"scores": 2.5})
    assert second.keys() == first.keys() - {"start", "first"}


def test_the_first_line_breaks_down_the_start(shards_dir: Path, tmp_path: Path, tiny_model: Any) -> None:
    begun = time.perf_counter()
    run(Config(input=(str(shards_dir),), output=str(tmp_path), device="cpu", model=tiny_model))
    took = time.perf_counter() - begun
    line = json.loads((tmp_path / TIMING).read_text().splitlines()[0])
    assert list(line["start"]) == ["before", "weights", "imports", "encoder", "first batch", "decoder"]
    assert list(line["first"]) == ["storage", "decode", "encode", "scores", "commit"]
    assert list(line["first"].values()) == sorted(line["first"].values()), "one after another"
    assert line["start"]["weights"] > 0
    assert 0 < line["start"].pop("before") < process_age()
    assert sum(line["start"].values()) + line["first"]["commit"] < took + 0.01


def test_leaving_early_closes_the_reports(tmp_path: Path) -> None:
    closed: list[bool] = []
    reports = timed(some(closed), tmp_path, RunStats())
    next(reports)
    reports.close()
    assert closed == [True]


def test_lines_are_appended(tmp_path: Path) -> None:
    for _ in range(2):
        list(timed(some([]), tmp_path, RunStats()))
    assert len((tmp_path / TIMING).read_text().splitlines()) == 2


def test_an_unwritable_file_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / TIMING).mkdir()
    assert len(list(timed(some([]), tmp_path, RunStats()))) == 2


def write(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / TIMING).write_text("".join(json.dumps(line) + "\n" for line in lines))


def line(
    seconds: float, run: float = 100.0, process: int = 1, samples: int = 50, **work: float
) -> dict[str, Any]:
    return {"run": run, "process": process, "samples": samples, "seconds": seconds, "work": work}


def test_without_lines_there_is_no_throughput(tmp_path: Path) -> None:
    assert read_speed(tmp_path) is None
    (tmp_path / TIMING).write_text("")
    assert read_speed(tmp_path) is None


def test_rates_are_samples_by_their_own_seconds(tmp_path: Path) -> None:
    write(tmp_path, [line(1.0, decode=0.9, encode=0.5), line(2.0, samples=150, decode=1.0, encode=1.4)])
    speed = read_speed(tmp_path)
    assert speed is not None
    assert speed.rates == pytest.approx([50.0, 150.0])
    assert speed.bound_by == ["decode", "encode"]
    assert speed.shares == pytest.approx({"decode": 1.0 / 2.4, "encode": 1.4 / 2.4})
    assert (speed.num_samples, speed.seconds, speed.num_runs) == (200, 2.0, 1)


def test_processes_of_one_run_add_up(tmp_path: Path) -> None:
    write(tmp_path, [line(2.0, process=1, decode=1.0), line(2.0, process=2, decode=1.0)])
    speed = read_speed(tmp_path)
    assert speed is not None
    assert sum(rate * speed.bin_seconds for rate in speed.rates) == pytest.approx(100)
    assert speed.seconds == 2.0
    assert speed.num_runs == 1


def test_the_time_between_two_runs_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, [line(2.0, run=9000.0, decode=1.0), line(3.0, run=100.0, process=2, decode=1.0)])
    speed = read_speed(tmp_path)
    assert speed is not None
    assert (speed.seconds, speed.num_runs) == (5.0, 2)


def test_broken_lines_are_skipped(tmp_path: Path) -> None:
    good = json.dumps(line(2.0, decode=1.0))
    broken = ['{"run": 1', "[]", "7", '{"seconds": "x"}', json.dumps({**line(1.0), "work": 3}), "\x00"]
    (tmp_path / TIMING).write_text("\n".join([*broken, good]))
    speed = read_speed(tmp_path)
    assert speed is not None
    assert speed.num_samples == 50


def test_many_shards_are_binned(tmp_path: Path) -> None:
    write(tmp_path, [line((i + 1) / 10, decode=i / 20) for i in range(1000)])
    speed = read_speed(tmp_path)
    assert speed is not None
    assert len(speed.rates) == 60
    assert speed.rates == pytest.approx([500.0] * 60)


def test_a_run_without_duration_has_no_throughput(tmp_path: Path) -> None:
    write(tmp_path, [line(0.0, decode=0.0)])
    assert read_speed(tmp_path) is None
