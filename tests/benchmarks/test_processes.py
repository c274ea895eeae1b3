"""Commands and measurements in processes of their own: their rows, failures, bounds, and what they leave."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.processes import descendants, run_bounded
from benchmarks.results import Measured, Record
from benchmarks.settings import Settings
from tests.benchmarks import made_up


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A tiny encoder over shards of twelve images."""
    return made_up.tiny_settings(tmp_path_factory.mktemp("processes"))


def add_row(record: Record, settings: Settings, name: str) -> None:
    """A measurement that adds a row."""
    assert settings.resume
    record.add(Measured(name=name, values=[float(os.environ.get("DALI_AESTHETIC_TEST", 0))]))


def fail(record: Record, settings: Settings) -> None:
    """A measurement that fails."""
    record.add(Measured(name="before", values=[1.0]))
    raise RuntimeError("no such luck\nand more")


def test_a_child_has_its_environment_and_adds_its_rows(settings: Settings) -> None:
    record = settings.record("children")
    env = {"DALI_AESTHETIC_TEST": "7", "PYTHONPATH": str(Path(__file__).parents[2])}
    record.add(Measured(name="first", values=[1.0]))
    assert processes.in_child(add_row, record, settings, "title", "row", bound_s=200, env=env)
    assert {row["name"]: row["median"] for row in record.rows} == {"first": 1.0, "row": 7.0}


def test_a_child_that_fails_is_done_and_one_that_takes_too_long_is_done_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_this_process(command: list[str], seconds: float, env: object) -> int | None:
        return processes.main(*command[3:]) if seconds > 1 else None

    monkeypatch.setattr(processes, "run_bounded", in_this_process)
    record = settings.record("failing children")
    assert processes.in_child(fail, record, settings, "failing", bound_s=2)
    assert not processes.in_child(add_row, record, settings, "slow", "row", bound_s=1)
    assert record.get("skipped") == [
        {"name": "failing", "reason": "RuntimeError: no such luck"},
        {"name": "slow", "reason": "not done after 1 s"},
    ]
    resumed = replace(settings, resume=True).record("failing children")
    assert resumed.has("before")
    assert processes.in_child(fail, resumed, settings, "failing", bound_s=0)
    assert processes.in_child(add_row, resumed, settings, "slow", "slow", bound_s=2)
    assert [row["name"] for row in resumed.rows] == ["before", "slow"]
    assert len(resumed.get("skipped")) == 1
    assert not settings.record("failing children").has("before")


def test_a_child_that_fails_after_its_row_keeps_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "run_bounded", lambda command, seconds, env: processes.main(*command[3:]))
    record = settings.record("failing late")
    assert processes.in_child(fail, record, settings, "before", bound_s=2)
    assert [row["name"] for row in record.rows] == ["before"]
    assert record.get("skipped") == [
        {"name": "before: what comes after it", "reason": "RuntimeError: no such luck"}
    ]


def test_a_child_that_starts_after_midnight_adds_to_the_file_of_its_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "run_bounded", lambda command, seconds, env: processes.main(*command[3:]))
    record = settings.record("by night")
    monkeypatch.setattr("time.strftime", lambda pattern: "2999-01-01")
    assert processes.in_child(add_row, record, settings, "title", "row", bound_s=2)
    assert [row["name"] for row in record.rows] == ["row"]
    assert [path.name for path in settings.results.glob("by night_*")] == [record.path.name]


def _gone(pid: int) -> bool:
    """Wait until a process is gone or a zombie."""
    for _ in range(200):
        try:
            if ") Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_processes_that_a_command_started_end_with_it(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    inner = f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    call = f"subprocess.run([sys.executable, '-S', '-c', {inner!r}], start_new_session=True)"
    outer = f"import subprocess, sys; {call}"
    assert run_bounded([sys.executable, "-S", "-c", outer], 8) is None
    pid = int(marker.read_text())
    assert _gone(pid), f"process {pid} is still there"
    assert pid not in descendants(os.getpid())
