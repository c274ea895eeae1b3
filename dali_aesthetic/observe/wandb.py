"""The metrics of a run as a run of Weights & Biases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.observe.metrics import Gpus, read_metrics
from dali_aesthetic.overlap import every
from dali_aesthetic.stats import RunStats

_LOG_SECONDS = 10.0


class WandbRun:
    """A run of Weights & Biases that gets the values every ten seconds and at the end."""

    def __init__(self, run: Any, gpus: Gpus) -> None:
        self._run, self._gpus = run, gpus

    @contextmanager
    def watch(self, stats: RunStats, num_shards: int) -> Iterator[None]:
        """Logs `stats` while the block runs; `samples_per_second_now` is the rate since the last values."""
        last = (time.perf_counter(), 0)

        def log() -> None:
            nonlocal last
            now, count = time.perf_counter(), stats.num_samples
            metrics = read_metrics(stats, num_shards, self._gpus.read())
            values = {"/".join((one.name, *one.labels)): one.value for one in metrics}
            rate = (count - last[1]) / max(now - last[0], 1e-9)
            self._run.log({**values, "samples_per_second_now": rate})
            last = (now, count)

        try:
            with every(_LOG_SECONDS, log, "wandb"):
                yield
        finally:
            log()
            summary = {"bound_by": stats.bound_by(), "failed": [report.source for report in stats.failed]}
            self._run.summary.update(summary)


@contextmanager
def wandb_run(project: str, config: Config) -> Iterator[WandbRun]:
    """A run of `project` while the block runs; wandb's own settings (WANDB_*) hold.

    Raises ConfigError where the package is missing or refuses.
    """
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "--wandb needs the package wandb: in the clone, pip install '.[wandb]', or leave the flag away"
        ) from None
    try:
        run = wandb.init(project=project, config=config.model_dump(mode="json"), job_type="filter")
    except (wandb.Error, OSError) as error:
        raise ConfigError(f"--wandb {project}: {error} (WANDB_MODE=offline needs no account)") from error
    gpus = Gpus()
    try:
        yield WandbRun(run, gpus)
    except BaseException:
        run.finish(exit_code=1)
        raise
    finally:
        gpus.close()
    run.finish()
