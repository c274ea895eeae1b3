"""A config to the launcher that it asks for."""

from __future__ import annotations

from dali_aesthetic.config import Config
from dali_aesthetic.launch.result import RunResult, Watch
from dali_aesthetic.launch.slurm import ALONE, Task, for_task


def run(config: Config, *, watch: Watch | None = None, task: Task = ALONE) -> RunResult:
    """Score every sample of `config.input` and write the kept ones, scores and stats to `config.output`.

    Raises `ConfigError` (also for an output that holds another run), `WeightsUnavailable`, and OSError
    where the output can't be written. A shard that can't be read is in the result's `stats.failed`. `task` is
    this process's part in a job that has several, such as `slurm.current_task()`.
    """
    config = for_task(config, task)
    if config.launch.engine == "ray":
        from dali_aesthetic.launch.ray import run_ray

        return run_ray(config, watch=watch)
    if config.launch.one_process:
        from dali_aesthetic.launch import local

        return local.run(config, watch=watch, task=task)
    from dali_aesthetic.launch.node import run_node

    return run_node(config, watch=watch, task=task)
