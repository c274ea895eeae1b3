"""A run that is asked to stop, raises in a stage, or hangs: an exit code, a message and no torn file."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.faults.runs import Job, assert_nothing_torn, hidden_files, wait_for

STAGES = ("reader", "check", "decoder", "encoder", "writer")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_run_cleanly_and_says_how_to_resume(
    job: Job, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    output = tmp_path / "out"
    command = job.start(output, faults=["slow:writer:1", "slow:check:1"])
    wait_for(lambda: (output / "stats" / "00000.json").exists(), command)
    os.kill(command.pid, number)
    assert command.wait() == code, command.text
    assert f"stopped by {number.name}" in command.text
    assert "run the same command again" in " ".join(command.text.split())
    assert "Traceback" not in command.text
    assert hidden_files(output) == [], "the open shard's temporary files are removed"
    assert_nothing_torn(job, output)
    assert not (output / "stats" / "00003.json").exists(), "it was to be stopped before the end"
    assert "committed before, skipped" in job.finish(output).text


def test_a_second_signal_ends_the_run_at_once(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = job.start(output, faults=["hang:check:20"])
    wait_for(lambda: (output / "shards").is_dir(), command)
    time.sleep(0.3)
    os.kill(command.pid, signal.SIGINT)
    time.sleep(0.5)
    assert command.poll() is None, "a hanging stage delays the clean shutdown"
    os.kill(command.pid, signal.SIGINT)
    assert command.wait(10) == -signal.SIGINT
    job.finish(output)


@pytest.mark.parametrize("stage", STAGES)
def test_an_exception_in_any_stage_ends_the_run_and_keeps_committed_shards(
    job: Job, tmp_path: Path, stage: str
) -> None:
    output = tmp_path / "out"
    command = job.start(output, faults=[f"raise:{stage}:9"])
    assert command.wait() == 1, command.text
    assert "injected fault" in command.text
    assert hidden_files(output) == []
    assert_nothing_torn(job, output)
    job.finish(output)


@pytest.mark.parametrize("stage", ["check", "reader", "decoder", "writer"])
def test_a_stalled_run_ends_with_the_stack_of_every_thread(job: Job, tmp_path: Path, stage: str) -> None:
    output = tmp_path / "out"
    start = time.monotonic()
    command = job.start(output, "--stall-timeout", "1", faults=[f"hang:{stage}:9"])
    assert command.wait(30) == 1, command.text
    assert time.monotonic() - start < 20
    text = " ".join(command.text.split())
    assert "stalled: no progress for 1 s" in text
    for name in ("MainThread", "storage", "decode", "encode", "stall"):
        assert f"thread {name}:" in text
    assert "in _hang" in text, "the stack of the hanging stage"
    assert re.search(rf"\d samples are in flight: \d{{4}}, .* of {job.source}/0000\d.tar", text)
    assert (f"storage holds 0008 of {job.source}/00000.tar" in text) is (stage == "check")
    assert_nothing_torn(job, output)
    job.finish(output)


def test_a_second_run_is_refused_and_names_the_first(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = job.start(output, faults=["slow:check:1"])
    wait_for(lambda: (output / "shards").is_dir(), first)
    second = job.start(output)
    assert second.wait() == 2, second.text
    assert f"is being written by process {first.pid} on " in " ".join(second.text.split())
    assert first.poll() is None
    assert first.wait() == 0, first.text
    job.finish(output)


def test_two_runs_started_together_give_the_bytes_of_one(job: Job, tmp_path: Path) -> None:
    for attempt in range(3):
        output = tmp_path / str(attempt)
        codes = sorted(command.wait() for command in [job.start(output), job.start(output)])
        assert codes in ([0, 2], [0, 0]), "the second one is refused, or came when the first had ended"
        job.finish(output)


def test_without_flock_a_second_run_on_the_same_host_is_refused(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = job.start(output, faults=["slow:check:1", "no-locks:-:0"])
    wait_for(lambda: (output / "shards").is_dir(), first)
    second = job.start(output, faults=["no-locks:-:0"])
    assert second.wait() == 2, second.text
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    third = job.start(output, faults=["no-locks:-:0"])
    assert third.wait() == 0, third.text
    job.finish(output)


def test_the_lock_of_a_killed_run_is_free(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = job.start(output, faults=["die:rename:2"])
    assert command.wait() == -signal.SIGKILL
    assert (output / ".lock").exists()
    job.finish(output)
    assert not (output / ".lock").exists()
    assert json.loads((output / "stats" / "00000.json").read_text())["num_samples"] == 40
