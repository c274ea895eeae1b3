"""Scaling: rates over the time in which all workers work, measured through the package's launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.scaling import Course, tree_cpu_seconds


def course(counts: list[tuple[int, int]]) -> Course:
    """Readings every half second of workers a and b, two cores busy."""
    times = [0.5 * index for index in range(len(counts))]
    samples = [{"a": a, "b": b} for a, b in counts]
    return Course(times=times, samples=samples, cpu=[2 * now for now in times])


def test_the_rate_is_of_the_time_in_which_all_workers_work() -> None:
    late_start = [(0, 0), (50, 0)]
    together = [(100 + 50 * i, 25 * (i + 1)) for i in range(10)]
    early_end = [(550, 300), (550, 350), (550, 400)]
    readings = course(late_start + together + early_end)
    assert readings.worker_rates() == pytest.approx({"a": 100, "b": 50})
    assert readings.cores_used() == pytest.approx(2)


def test_workers_that_never_meet_have_no_rate() -> None:
    readings = course([(0, 0), (10, 0), (20, 0), (20, 5), (20, 10), (20, 15)])
    with pytest.raises(ValueError, match="never at work together"):
        readings.worker_rates()


def test_cpu_time_counts_children() -> None:
    before = tree_cpu_seconds(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        time.sleep(1.0)
        used = tree_cpu_seconds(os.getpid()) - before
        child.kill()
    assert used > 0.1
    assert tree_cpu_seconds(2**22 + 1) == 0.0


@pytest.mark.slow
def test_it_measures_one_worker_and_two(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--quick", "--seconds", "4", "--distinct", "32"]
    options += ["--encoder", "ViT-S-32-alt", "--batch-size", "8"]
    places = ["--data", str(tmp_path / "data"), "--results", str(tmp_path)]
    done = CliRunner().invoke(app, ["scaling", *options, *places], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.glob("scaling_*.json")
    content = json.loads(path.read_text())
    assert content["complete"]
    assert [row["name"] for row in content["rows"]] == ["1 CPU worker", "2 CPU workers"]
    assert set(content["rows"][1]["workers"]) == {"CPU 0", "CPU 1"}
    assert all(row["median"] > 0 and row["host_cores_used"] > 0 for row in content["rows"])
