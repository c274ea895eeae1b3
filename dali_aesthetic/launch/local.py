"""One process, one device: plan, skip what is committed, run the loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from dali_aesthetic.config import Config
from dali_aesthetic.launch.precision import prepare
from dali_aesthetic.launch.result import RunResult, Watch, unwatched
from dali_aesthetic.launch.slurm import ALONE, Task, settling
from dali_aesthetic.launch.work import work_shards
from dali_aesthetic.launch.worker import Worker, build_worker, model_reader, run_record
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.stats import RunStats
from dali_aesthetic.types import Shard
from dali_aesthetic.write.lock import claim
from dali_aesthetic.write.output import open_output

__all__ = ["RunResult", "Watch", "run"]


def run(config: Config, *, watch: Watch | None = None, task: Task = ALONE) -> RunResult:
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
