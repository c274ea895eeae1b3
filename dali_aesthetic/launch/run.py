"""A config to the launcher that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from dali_aesthetic.config import Config
from dali_aesthetic.launch.node.crew import Crew
from dali_aesthetic.launch.node.slots import find_slots
from dali_aesthetic.launch.precision import prepare
from dali_aesthetic.launch.result import RunResult, Watch, unwatched
from dali_aesthetic.launch.slurm import ALONE, Task, for_task, settling
from dali_aesthetic.launch.work import work_shards
from dali_aesthetic.launch.worker import Worker, build_worker, model_reader, run_record
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.stats import RunStats
from dali_aesthetic.types import Shard
from dali_aesthetic.write.lock import claim
from dali_aesthetic.write.output import clean_leftovers, open_output


def run(config: Config, *, watch: Watch | None = None, task: Task = ALONE) -> RunResult:
    """Score every sample of `config.input` and write the kept ones, scores and stats to `config.output`.

    Raises `ConfigError` (also for an output that holds another run), `WeightsUnavailable`, and OSError
    where the output can't be written. A shard that can't be read is in the result's `stats.failed`. `task` is
    this process's part in a job that has several, such as `slurm.current_task()`.
    """
    config = for_task(config, task)
    if config.launch.engine == "ray":
        from dali_aesthetic.launch.cluster.driver import run_ray

        return run_ray(config, watch=watch)
    if config.launch.one_process:
        return run_local(config, watch=watch, task=task)
    return run_node(config, watch=watch, task=task)


# FOLDED dali_aesthetic/launch/local.py: One process, one device: plan, skip what is committed, run the loop.


__all__ = ["RunResult", "Watch", "run"]


def run_local(config: Config, *, watch: Watch | None = None, task: Task = ALONE) -> RunResult:
    """Score every sample of `config.input` and write the kept ones, scores and stats to `config.output`.

    Raises `ConfigError` (also for an output that holds another run), `WeightsUnavailable`, and OSError
    where the output can't be written. A shard that can't be read is in the result's `stats.failed`. Where
    other tasks share the output, this one does its part.
    """
    shards = plan_shards(config.input, output=config.whole_output, image_column=config.image_column)
    reader = model_reader(config.model)
    with settling(config.output, task):
        config = prepare(config, shards, reader)
    worker = build_worker(config, reader)
    try:
        return _run(config, shards, worker, watch, task)
    finally:
        worker.decoder.close()


def _run(
    config: Config, shards: Sequence[Shard], worker: Worker, watch: Watch | None, task: Task
) -> RunResult:
    with claim(config.output, job="" if task.is_alone else task.job, leads=task.index == 0):
        todo = task.part(open_output(config.output, run_record(config, worker), shards), len(shards))
        stats = RunStats()
        with (
            (watch or unwatched)(stats, len(todo)),
            closing(work_shards(config, worker, todo, stats, memory_share=task.local_count)) as reports,
        ):
            for _ in reports:
                pass
    num_shards = task.part_size(len(shards))
    return RunResult(
        stats=stats, num_shards=num_shards, num_skipped=num_shards - len(todo), threshold=config.threshold
    )


# FOLDED dali_aesthetic/launch/node.py: One node: a process per GPU (or CPU worker), shards handed out as they ask, the dead replaced.


def run_node(config: Config, *, watch: Watch | None = None, task: Task = ALONE) -> RunResult:
    """As `launch.local.run`, with the workers that `config.launch` asks for; this process touches no image.

    A worker that dies is replaced and what it had open is done again; a shard that three workers died over is
    in the result's `stats.failed`. Raises `AllWorkersLost` where no worker stays alive.
    """
    slots = find_slots(config)
    job = "" if task.is_alone else task.job
    with claim(config.output, job=job, leads=task.index == 0), Crew(config, slots, task) as crew:
        shards = plan_shards(config.input, output=config.whole_output, image_column=config.image_column)
        todo = task.part(open_output(config.output, crew.first_record(shards), shards), len(shards))
        with (watch or unwatched)(crew.stats, len(todo)):
            crew.work(todo)
        if crew.stats.incidents:
            clean_leftovers(config.output)  # those of workers that died
    num_shards = task.part_size(len(shards))
    return RunResult(
        stats=crew.stats,
        num_shards=num_shards,
        num_skipped=num_shards - len(todo),
        threshold=config.threshold,
    )
