"""Tasks: what srun, job arrays and torchrun say, and parts that are disjoint and together the whole."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.launch import slurm
from dali_aesthetic.launch.slurm import ALONE, Task, current_task, for_task, settling
from dali_aesthetic.types import Shard

SRUN = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "7",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
}
ARRAY = {
    "SLURM_JOB_ID": "83",
    "SLURM_ARRAY_JOB_ID": "80",
    "SLURM_ARRAY_TASK_ID": "14",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_MIN": "10",
    "SLURM_ARRAY_TASK_MAX": "16",
    "SLURM_ARRAY_TASK_STEP": "2",
}


def test_without_a_scheduler_a_process_is_alone() -> None:
    assert current_task({}) == ALONE
    assert ALONE.is_alone


def test_a_task_of_srun() -> None:
    task = current_task(SRUN)
    assert task == Task(index=5, count=7, local_index=1, local_count=3, job="Slurm job 77")
    assert str(task) == "task 5 of 7 (Slurm job 77)"


def test_the_shell_of_a_batch_script_is_no_task() -> None:
    batch = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
    assert current_task(batch).is_alone


def test_an_array_counts_from_its_first_task_in_its_steps() -> None:
    task = current_task(ARRAY)
    assert (task.index, task.count, task.job) == (2, 4, "Slurm job 80")


def test_tasks_of_srun_within_an_array() -> None:
    task = current_task({**SRUN, **ARRAY})
    assert (task.index, task.count, task.local_index) == (2 * 7 + 5, 28, 1)


def test_one_task_of_an_array_submitted_again_is_alone() -> None:
    again = {
        **ARRAY,
        "SLURM_ARRAY_TASK_COUNT": "1",
        "SLURM_ARRAY_TASK_MIN": "14",
        "SLURM_ARRAY_TASK_MAX": "14",
    }
    assert (current_task(again).index, current_task(again).count) == (0, 1)


def test_a_task_of_torchrun() -> None:
    environ = {
        "RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_PORT": "29500",
    }
    task = current_task({**SRUN, **environ})
    assert (task.index, task.count, task.local_index, task.local_count) == (3, 8, 1, 2)
    assert task.job == "torchrun localhost:29500"


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({**ARRAY, "SLURM_ARRAY_TASK_COUNT": "3"}, "without gaps"),
        ({**SRUN, "SLURM_PROCID": "seven"}, "SLURM_PROCID is 'seven'"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE is 'two'"),
        ({**SRUN, "SLURM_PROCID": "7"}, "task 7 of 7"),
        ({"RANK": "8", "WORLD_SIZE": "8"}, "task 8 of 8"),
    ],
)
def test_an_inconsistent_environment_is_refused(environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        current_task(environ)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_parts_are_disjoint_and_cover_the_plan(count: int) -> None:
    shards = [Shard(index=i, name=str(i), kind="tar", source="") for i in range(11)]
    parts = [Task(index=index, count=count).part(shards, 11) for index in range(count)]
    assert sorted(shard.index for part in parts for shard in part) == list(range(11))
    assert [len(part) for part in parts] == [Task(index=i, count=count).part_size(11) for i in range(count)]
    left = shards[4:]  # a resumed run: who owns what does not depend on what is left
    assert all(set(Task(index=i, count=count).part(left, 11)) <= set(part) for i, part in enumerate(parts))


def config(**values: object) -> Config:
    return Config.build({"input": "a.tar", "output": "out", "device": "cpu", **values})


def test_a_task_has_its_share_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("dali_aesthetic.launch.slurm.cpu_count", lambda: 16)
    task = Task(index=1, count=4, local_count=4)
    assert for_task(config(), task).decode.num_threads == 4
    assert for_task(config(decode={"num_threads": 3}), task).decode.num_threads == 3
    monkeypatch.setattr("dali_aesthetic.launch.slurm.cpu_count", lambda: 5)
    assert for_task(config(), task).decode.num_threads == 5, "Slurm has bound it to its own cores"
    assert for_task(config(), ALONE) == config()


def test_a_task_takes_one_gpu_of_those_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dali_aesthetic.launch.node.slots.visible_gpus", lambda: ["4", "5"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    for_task(config(device="auto"), Task(index=7, count=8, local_index=3, local_count=4))
    assert slurm.os.environ["CUDA_VISIBLE_DEVICES"] == "5"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"threshold": {"top": "25%"}}, "--keep-top needs the scores of all tasks"),
        ({"launch": {"workers": 2}}, "--ntasks-per-node=1"),
    ],
)
def test_options_that_several_tasks_cannot_share_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        for_task(config(**values), Task(index=0, count=4, local_count=2))


def test_a_task_alone_on_its_host_may_use_all_gpus() -> None:
    several = config(launch={"workers": 2})
    assert for_task(several, Task(index=0, count=4, local_count=1)) == several


def _settle(output: Path, index: int, log: Path) -> None:
    with settling(str(output), Task(index=index, count=3)):
        with log.open("a") as stream:
            stream.write("in ")
        time.sleep(0.2)
        with log.open("a") as stream:
            stream.write("out ")


def test_one_task_at_a_time_settles_the_precision(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    processes = [context.Process(target=_settle, args=(tmp_path / "out", index, log)) for index in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert log.read_text() == "in out " * 3
    assert list((tmp_path / "out").iterdir()) == []
