"""`run`: chooses the engine that the config asks for. The engine of one process is here."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from dali_aesthetic.config import Config
from dali_aesthetic.launch.engine import Engine, Prepared, RunResult, Watch, launch
from dali_aesthetic.launch.node.crew import node_processes
from dali_aesthetic.launch.precision import prepare
from dali_aesthetic.launch.slurm import ALONE, Task, for_task, settling
from dali_aesthetic.launch.streams import quiet_libraries
from dali_aesthetic.launch.work import condition_of, prefilter_of, work_shards
from dali_aesthetic.launch.worker import build_worker, model_reader, on_device, resolve_device, run_record
from dali_aesthetic.score.weights import head_name
from dali_aesthetic.stats import RunStats
from dali_aesthetic.types import Shard

_LOG = logging.getLogger(__name__)


def run(config: Config, *, watch: Watch | None = None, task: Task = ALONE) -> RunResult:
    """Score every sample of `config.input` and write the kept ones, scores and stats to `config.output`.

    Raises `ConfigError` (also for an output that holds another run), `WeightsUnavailable`, and OSError
    where the output can't be written. A shard that can't be read, or over which three workers died, is in
    the result's `stats.failed`. Raises `AllWorkersLost` or `ClusterFailed` where no worker stays alive.
    `task` is this process's part in a job that has several, such as `slurm.current_task()`.
    """
    config = for_task(config, task)
    names = [head_name(head) for head in config.model.heads]
    condition_of(config, names), prefilter_of(config, names)  # refused before anything is read
    return launch(config, _engine(config), watch, task)


def _engine(config: Config) -> Engine:
    if config.launch.engine == "ray":
        from dali_aesthetic.launch.cluster.driver import ray_actors

        return ray_actors
    return this_process if config.launch.one_process else node_processes


@contextmanager
def this_process(config: Config, shards: Sequence[Shard], task: Task) -> Iterator[Prepared]:
    """The engine of one process on one device."""
    _LOG.info("loading %s", config.model.encoder)
    reader = model_reader(config.model)
    with (
        on_device(resolve_device(config.device)),
        quiet_libraries(config.observe.library_messages) as library_lines,
    ):
        with settling(config.output, task):
            config = prepare(config, shards, reader)
        worker = build_worker(config, reader)

        def work(todo: Sequence[Shard], stats: RunStats) -> None:
            reports = work_shards(config, worker, todo, stats, memory_share=task.local_count)
            with closing(reports):
                for _ in reports:
                    pass
            stats.library_lines = library_lines()

        try:
            yield Prepared(config=config, record=run_record(config, worker), work=work)
        finally:
            worker.decoder.close()
