"""A run with several workers ends with the bytes of one undisturbed process, whichever process dies."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

from tests.conftest import snapshot
from tests.faults.runs import Command, Job, assert_nothing_torn, assert_same, hidden_files, wait_for

ONE, TWO = ("--workers", "1"), ("--workers", "2")
SLOW = "slow:check:1"


def children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def workers(command: Command) -> list[int]:
    """The workers of a launcher: the children of its fork server, without their own helpers."""
    return [worker for server in children(command.pid) for worker in children(server)]


def committed(output: Path) -> int:
    return len(list((output / "stats").glob("*.json")))


def test_workers_killed_at_random_are_replaced_and_the_output_is_unchanged(job: Job, tmp_path: Path) -> None:
    output, moments, killed = tmp_path / "out", random.Random(time.time_ns()), 0
    command = job.start(output, "--workers", "4", "--json", worker_faults=[SLOW])
    wait_for(lambda: (output / "run.json").exists(), command)
    while command.poll() is None and killed < 4:
        time.sleep(moments.uniform(0.1, 0.6))
        if there := workers(command):
            os.kill(moments.choice(there), signal.SIGKILL)
            killed += 1
    assert command.wait(90) == 0, command.text
    assert_same(snapshot(output), job.expected)
    said = json.loads(command.text[command.text.index("{") :])
    assert killed
    assert sum("by SIGKILL" in one for one in said["incidents"]) >= 1
    assert (said["samples"], said["committed"]) == (160, 4), "what was done twice counts once"


def test_workers_end_with_a_killed_launcher_and_the_next_run_resumes(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = job.start(output, *ONE, worker_faults=["hang:check:100"])
    wait_for(lambda: committed(output) >= 1, command)
    second = job.start(output, *TWO)
    assert second.wait() == 2, second.text
    assert f"is being written by process {command.pid} on " in " ".join(second.text.split())
    there = workers(command)
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}/exe").exists() for pid in there):
        assert time.monotonic() < deadline, "a worker outlives its launcher"
        time.sleep(0.02)
    assert len(there) == 1
    assert_nothing_torn(job, output)
    assert "committed before, skipped" in job.finish(output).text


def test_a_shard_that_kills_three_workers_is_given_up_and_the_others_finish(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = job.start(output, *TWO, worker_faults=["poison:00001:0"])
    assert command.wait(120) == 1, command.text
    text = " ".join(command.text.split())
    assert f"failed {job.source}/00001.tar: a worker died over it 3 times" in text
    assert "3 committed, 1 failed" in text
    assert hidden_files(output) == []
    assert_nothing_torn(job, output)
    job.finish(output)


def test_a_signal_ends_all_workers_cleanly(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = job.start(output, *TWO, worker_faults=[SLOW])
    wait_for(lambda: committed(output) >= 1, command)
    there = workers(command)
    os.kill(command.pid, signal.SIGTERM)
    assert command.wait(30) == 128 + signal.SIGTERM, command.text
    assert "run the same command again" in " ".join(command.text.split())
    assert "Traceback" not in command.text
    assert not [pid for pid in there if Path(f"/proc/{pid}/exe").exists()]
    assert hidden_files(output) == []
    assert_nothing_torn(job, output)
    job.finish(output)


def test_a_worker_that_hangs_is_replaced(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = job.start(output, *ONE, "--stall-timeout", "4", worker_faults=["hang:writer:11"])
    assert command.wait(120) == 0, command.text
    assert "stalled: no progress for 4 s" in command.text
    assert_same(snapshot(output), job.expected)


def test_an_exception_in_a_worker_is_reported_and_its_shards_are_retried(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = job.start(output, *ONE, worker_faults=["raise:decoder:11"])
    assert command.wait(120) == 0, command.text
    assert "RuntimeError: injected fault; redone:" in " ".join(command.text.split())
    assert_same(snapshot(output), job.expected)
