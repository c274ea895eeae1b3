"""Observers of a run for machines: Prometheus metrics, a JSON log, Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from dali_aesthetic.config import Config
from dali_aesthetic.launch.engine import Watch
from dali_aesthetic.stats import RunStats


@contextmanager
def observing(
    config: Config, watch: Watch | None, say: Callable[[str], None] = lambda text: None
) -> Iterator[Watch | None]:
    """`watch` and the observers that `config.observe` asks for, as one; they exist while the block runs.

    `say` gets the address of the metrics. Raises ConfigError for a port, file or package that can't be used.
    """
    wanted = config.observe
    watches = [] if watch is None else [watch]
    with ExitStack() as stack:
        if wanted.metrics_port is not None:
            from dali_aesthetic.observe.metrics import serve_metrics

            endpoint = stack.enter_context(serve_metrics(wanted.metrics_host, wanted.metrics_port))
            say(f"metrics: {endpoint.url}")
            watches.append(endpoint.watch)
        if wanted.log_json is not None:
            from dali_aesthetic.observe.log import json_log

            watches.append(stack.enter_context(json_log(wanted.log_json)).watch)
        if wanted.wandb is not None:
            from dali_aesthetic.observe.wandb import wandb_run

            watches.append(stack.enter_context(wandb_run(wanted.wandb, config)).watch)
        yield together(watches)


def together(watches: Sequence[Watch]) -> Watch | None:
    """One watch that enters them all, in order; None where there are none."""
    if len(watches) < 2:
        return watches[0] if watches else None

    @contextmanager
    def watch(stats: RunStats, num_shards: int) -> Iterator[None]:
        with ExitStack() as stack:
            for one in watches:
                stack.enter_context(one(stats, num_shards))
            yield

    return watch
