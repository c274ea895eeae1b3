"""`run` and `score`: every sample of an input through the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import typer

from dali_aesthetic.commands.command import command, console, echo, print_json
from dali_aesthetic.commands.embeddings import score_stored
from dali_aesthetic.commands.options import (
    EVERYTHING,
    ConfigFile,
    Verbosity,
    as_yaml,
    given_flags,
    resolve,
)
from dali_aesthetic.config import Config, ConfigError

if TYPE_CHECKING:
    from dali_aesthetic.launch.engine import RunResult, Watch
    from dali_aesthetic.launch.slurm import Task

commands = typer.Typer()
_LOG = logging.getLogger(__name__)
RUN_EXAMPLES = """
Examples:

  dali-aesthetic run --input 'data/{00000..00123}.tar' --output kept --threshold 0.5

  dali-aesthetic run --input shards/ --output kept --preset high --gpus all

  dali-aesthetic run --input photos/ --output kept --encoder ViT-B-32 --head laion-v1 --raw-threshold 5

Exit code: 0 complete, 1 shards failed (they are named) or it stalled, 2 wrong configuration or an output in
use, 130 and 143 stopped by Ctrl-C and SIGTERM. Whatever ended it: run the same command again to go on.
"""
SCORE_EXAMPLES = """
Examples:

  dali-aesthetic score --input 'data/{00000..00123}.tar' --output scored

  dali-aesthetic filter --input 'data/{00000..00123}.tar' --scores scored --output kept --keep-top 25%
"""
_FOR_KEPT = ("threshold", "output_format")
_READ_FOR_EMBEDDINGS = ("input", "output", "model.encoder", "model.heads", "model.model_dir")


class Launch(Protocol):
    """Runs a configuration."""

    def __call__(self, config: Config, *, watch: Watch | None) -> RunResult: ...


@command(commands, *EVERYTHING, examples=RUN_EXAMPLES)
def run(given: Mapping[str, Any], file: ConfigFile, verbosity: Verbosity) -> int:
    """Score every sample, write the kept ones, the scores and the stats; rerun to go on where it stopped."""
    return _run(resolve(given, file.config), file.print_config, verbosity)


@command(commands, *(one for one in EVERYTHING if one not in _FOR_KEPT), examples=SCORE_EXAMPLES)
def score(given: Mapping[str, Any], file: ConfigFile, verbosity: Verbosity) -> int:
    """Score every sample and write no images: cut the scores later with `filter`, as often as you like."""
    from dali_aesthetic.embeddings.files import holds_embeddings

    if given["input"] and holds_embeddings(given["input"]):
        unread = ["--config"] if file.config else []
        unread += given_flags(given, but=_READ_FOR_EMBEDDINGS)
        if unread:
            raise ConfigError(
                f"{unread[0]} is not read for stored embeddings: give --encoder, --head, --output"
            )
        return score_stored(resolve(given), verbosity)
    return _run(resolve({**given, "scores_only": True}, file.config), file.print_config, verbosity)


def launch_and_report(launch: Launch, config: Config, verbosity: Verbosity) -> int:
    """Launch it, watched and observed as the configuration says, and print what came of it; the exit code."""
    from dali_aesthetic.display import as_dict, logged_on, problems, summary, watch_on
    from dali_aesthetic.observe import observing

    say = (lambda text: None) if verbosity.silent else console.print
    show = partial(watch_on, console, log_interval=config.observe.log_interval)
    with (
        nullcontext() if verbosity.silent else logged_on(console),
        observing(config, None if verbosity.silent else show, say) as watch,
    ):
        _LOG.info("loading the libraries")
        result = launch(config, watch=watch)
    if verbosity.json:
        print_json(as_dict(result, config))
    elif verbosity.quiet:
        problems(result.stats, console)
    else:
        summary(result, config, console)
    return result.exit_code


def _run(config: Config, print_config: bool, verbosity: Verbosity) -> int:
    if print_config:
        echo(as_yaml(config), nl=False)
        return 0
    from dali_aesthetic.launch.slurm import current_task, for_task

    task = current_task()
    if verbosity.verbose:
        observe = config.observe.model_copy(update={"library_messages": True})
        config = config.model_copy(update={"observe": observe})
        console.print_json(config.model_dump_json())
    if not (task.is_alone or verbosity.silent):
        console.print(f"{task}: one shard in {task.count}, from number {task.index} on")
    if (unlikely := config.threshold.unlikely(config.model.heads[0])) and not config.scores_only:
        console.print(f"[yellow]warning[/] {unlikely}", soft_wrap=True)
    config = for_task(config, task)
    return launch_and_report(partial(_launch, task=task), config, verbosity)


def _launch(config: Config, *, watch: Watch | None, task: Task) -> RunResult:
    from dali_aesthetic.launch.filter import run_top  # torch and DALI: seconds
    from dali_aesthetic.launch.run import run as run_config

    if config.threshold.top is not None and not config.scores_only:
        return run_top(config, watch=watch)
    return run_config(config, watch=watch, task=task)
