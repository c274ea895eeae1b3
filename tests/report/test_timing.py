"""Speed over time from the launcher's lines, whole or broken, of one process or several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dali_aesthetic.layout import TIMING
from dali_aesthetic.timing import read_speed


def write(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / TIMING).write_text("".join(json.dumps(line) + "\n" for line in lines))


def line(
    seconds: float, run: float = 100.0, process: int = 1, samples: int = 50, **work: float
) -> dict[str, Any]:
    return {"run": run, "process": process, "samples": samples, "seconds": seconds, "work": work}


def test_without_lines_there_is_nothing_to_tell(tmp_path: Path) -> None:
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


def test_broken_lines_are_passed_over(tmp_path: Path) -> None:
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


def test_a_run_of_no_time_at_all_tells_nothing(tmp_path: Path) -> None:
    write(tmp_path, [line(0.0, decode=0.0)])
    assert read_speed(tmp_path) is None
