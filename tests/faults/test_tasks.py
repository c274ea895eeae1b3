"""Tasks of a job share an output: each does its part, the job holds the lock, and the result is complete."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.conftest import snapshot
from tests.faults.runs import Command, Job, assert_nothing_torn, assert_same, hidden_files, wait_for


def task(index: int, count: int, job: str = "7") -> dict[str, str]:
    """The environment that srun gives task `index` of `count`."""
    return {
        "SLURM_JOB_ID": job,
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(index),
        "SLURM_NTASKS": str(count),
        "SLURM_LOCALID": str(index),
        "SLURM_STEP_TASKS_PER_NODE": str(count),
    }


def start(job: Job, output: Path, count: int, *more: object, faults: tuple[str, ...] = ()) -> list[Command]:
    return [job.start(output, *more, environ=task(i, count), faults=faults) for i in range(count)]


def test_tasks_share_an_output_and_may_outnumber_the_shards(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    commands = start(job, output, 5)
    assert [command.wait(90) for command in commands] == [0] * 5, [command.text for command in commands]
    assert_same(snapshot(output), job.expected)
    assert all("1 committed, 0 failed" in command.text for command in commands[:4])
    assert "0 committed, 0 failed" in commands[4].text
    assert "task 2 of 5 (Slurm job 7)" in commands[2].text


def test_another_number_of_tasks_finishes_the_work_of_killed_tasks(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    commands = start(job, output, 2, faults=("slow:check:1",))
    wait_for(lambda: any((output / "stats").glob("*.json")), commands[0])
    os.kill(commands[1].pid, signal.SIGKILL)
    assert commands[1].wait() == -signal.SIGKILL
    assert commands[0].wait(60) == 0, commands[0].text
    assert_nothing_torn(job, output)
    assert not (output / "stats" / "00003.json").exists(), "its task was killed"
    for command in start(job, output, 3):
        assert command.wait(90) == 0, command.text
    job.finish(output)


def test_another_job_and_a_plain_run_are_refused_while_a_task_runs(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (first,) = start(job, output, 2, faults=("hang:check:20",))[:1]
    wait_for(lambda: (output / "run.json").exists(), first)
    others = [job.start(output), job.start(output, environ=task(0, 2, job="8"))]
    for other in others:
        assert other.wait(60) == 2, other.text
        assert "is being written by Slurm job 7" in " ".join(other.text.split())
    os.kill(first.pid, signal.SIGKILL)


def test_the_last_task_removes_the_lock_and_a_killed_job_leaves_none(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    commands = start(job, output, 2, faults=("slow:check:1",))
    wait_for(lambda: (output / "run.json").exists(), commands[0])
    time.sleep(0.3)
    for command in commands:
        os.kill(command.pid, signal.SIGTERM)
    assert [command.wait() for command in commands] == [143, 143]
    assert hidden_files(output) == []
    job.finish(output)
