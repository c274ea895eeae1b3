"""The lines about time: one for each committed shard, and never a reason to fail."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from dali_aesthetic.config import Config
from dali_aesthetic.launch.run import run
from dali_aesthetic.layout import TIMING
from dali_aesthetic.stats import RunStats
from dali_aesthetic.timing import process_age, timed
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


def test_a_run_tells_where_its_first_seconds_went(shards_dir: Path, tmp_path: Path, tiny_model: Any) -> None:
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


def test_leaving_early_closes_what_it_was_given(tmp_path: Path) -> None:
    closed: list[bool] = []
    reports = timed(some(closed), tmp_path, RunStats())
    next(reports)
    reports.close()
    assert closed == [True]


def test_lines_are_appended(tmp_path: Path) -> None:
    for _ in range(2):
        list(timed(some([]), tmp_path, RunStats()))
    assert len((tmp_path / TIMING).read_text().splitlines()) == 2


def test_an_unwritable_place_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / TIMING).mkdir()
    assert len(list(timed(some([]), tmp_path, RunStats()))) == 2
