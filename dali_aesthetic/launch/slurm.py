"""The task of a job that this process is (srun, a Slurm job array, both, or torchrun), and its part.

Tasks share nothing but the output. A shard's index in the plan decides which task it belongs to, so hosts
need not communicate; committed shards are skipped, so a rerun may have another number of tasks.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.layout import SETTLING
from dali_aesthetic.overlap import cpu_count
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.types import Shard
from dali_aesthetic.write.files import make_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Task `index` of `count`; `local_index` of the `local_count` on its host. `job` names the run of all."""

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1
    job: str = ""

    @property
    def is_alone(self) -> bool:
        return self.count == 1

    def part(self, todo: Sequence[Shard], num_shards: int) -> Sequence[Shard]:
        """The shards of this task, in their order, of those left `todo` of a plan of `num_shards`."""
        if self.is_alone:
            return todo
        if len(todo) == num_shards:  # nothing is done: a million need not be looked at
            return todo[self.index :: self.count]
        return [shard for shard in todo if shard.index % self.count == self.index]

    def part_size(self, num_shards: int) -> int:
        """How many of a plan's shards are this task's."""
        return len(range(self.index, num_shards, self.count))

    def __str__(self) -> str:
        return f"task {self.index} of {self.count} ({self.job})"


ALONE = Task()


def current_task(environ: Mapping[str, str] = os.environ) -> Task:
    """The task that torchrun, srun or a job array makes of this process; `ALONE` without any of them.

    The shell of a batch script is no task, however many the job has: only what srun starts is. Raises
    ConfigError for a job array with gaps, whose tasks can't be counted.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        run_id = environ.get("TORCHELASTIC_RUN_ID", "none")
        where = f"{environ.get('MASTER_ADDR', 'localhost')}:{environ.get('MASTER_PORT', '')}"
        task = Task(
            index=_number(environ, "RANK"),
            count=_number(environ, "WORLD_SIZE"),
            local_index=_number(environ, "LOCAL_RANK", 0),
            local_count=_number(environ, "LOCAL_WORLD_SIZE", 1),
            job=f"torchrun {where if run_id == 'none' else run_id}",
        )
    else:
        step, array = _step(environ), _array(environ)
        job = environ.get("SLURM_ARRAY_JOB_ID") or environ.get("SLURM_JOB_ID", "")
        task = Task(
            index=array.index * step.count + step.index,
            count=array.count * step.count,
            local_index=step.local_index,
            local_count=step.local_count,
            job=f"Slurm job {job}" if job else "",
        )
    if not 0 <= task.index < task.count:
        raise ConfigError(f"the environment says that this is task {task.index} of {task.count}")
    return task


def _step(environ: Mapping[str, str]) -> Task:
    """The task of srun. The batch script has its variables too, except for `SLURM_STEP_ID`."""
    if "SLURM_STEP_ID" not in environ or "SLURM_PROCID" not in environ:
        return ALONE
    count = _number(environ, "SLURM_STEP_NUM_TASKS", _number(environ, "SLURM_NTASKS", 1))
    return Task(
        index=_number(environ, "SLURM_PROCID"),
        count=count,
        local_index=_number(environ, "SLURM_LOCALID", 0),
        local_count=_tasks_here(environ, _number(environ, "SLURM_NODEID", 0)),
    )


def _tasks_here(environ: Mapping[str, str], node: int) -> int:
    """The number of tasks on a node, from a list such as `4(x2),3`: four on two nodes, three on the next."""
    step, job = "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"
    name = step if step in environ else job
    text = environ.get(name, "1")
    counts: list[int] = []
    try:
        for part in text.split(","):
            number, _, times = part.partition("(x")
            counts += [int(number)] * int(times.rstrip(")") or 1)
    except ValueError:
        raise ConfigError(f"{name} is {text!r} in the environment: it should be as 4(x2),3") from None
    return counts[min(node, len(counts) - 1)]


def _array(environ: Mapping[str, str]) -> Task:
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return ALONE
    number, count = (_number(environ, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT"))
    first, last = (_number(environ, f"SLURM_ARRAY_TASK_{name}", number) for name in ("MIN", "MAX"))
    step = max(1, _number(environ, "SLURM_ARRAY_TASK_STEP", 1))
    if (last - first) // step + 1 != count:
        raise ConfigError(
            f"the job array has {count} tasks from {first} to {last} in steps of {step}: give one without "
            "gaps, such as --array=0-7; tasks that failed are made up for by submitting the whole array again"
        )
    return Task(index=(number - first) // step, count=count)


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r} in the environment: it should be a number") from None


def for_task(config: Config, task: Task) -> Config:
    """The config with this task's share of its host: its threads, and one GPU of several by local index.

    Raises ConfigError for options that several tasks can't share.
    """
    if task.is_alone:
        return config
    if config.threshold.top is not None and not config.scores_only:
        raise ConfigError(
            "--keep-top needs the scores of all tasks: run `score` in the job, then `filter --keep-top` once"
        )
    if config.launch.engine != "local":
        raise ConfigError(
            f"--engine {config.launch.engine} has its own cluster: start it once, not as {task}"
        )
    if config.launch.gpus is not None or config.launch.workers is not None:
        if task.local_count > 1:
            raise ConfigError(
                f"--gpus and --workers start the processes of a host, but the job has {task.local_count} "
                "tasks on this one: give --ntasks-per-node=1, or leave them out for a process each"
            )
        return config
    _take_own_gpu(config, task)
    # Slurm may bind a task to its cores; otherwise each task sees all of the host's.
    bound = cpu_count() < (os.cpu_count() or 1)
    threads = config.decode.num_threads or (cpu_count() if bound else max(1, cpu_count() // task.local_count))
    return config.model_copy(update={"decode": config.decode.model_copy(update={"num_threads": threads})})


def _take_own_gpu(config: Config, task: Task) -> None:
    from dali_aesthetic.launch.node.slots import VISIBLE, visible_gpus

    if config.device == "cpu" or not (there := visible_gpus()):
        return
    os.environ[VISIBLE] = there[task.local_index % len(there)]


@contextmanager
def settling(output: str, task: Task) -> Iterator[None]:
    """Lets one task at a time settle the run's precision; the next finds it settled. No lock at a URL."""
    if task.is_alone or is_url(output):
        yield
        return
    make_folder(Path(output))
    path = Path(output) / SETTLING
    while True:
        with path.open("a") as stream:
            with suppress(OSError):  # a file system without locks: the work is done twice, with one result
                fcntl.flock(stream, fcntl.LOCK_EX)
            if not _is_file(path, stream.fileno()):
                continue  # the task before removed the file that this one waited for
            yield
            path.unlink(missing_ok=True)
            return


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
