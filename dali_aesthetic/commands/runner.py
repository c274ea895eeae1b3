"""Flags over a file to a config, a config to its launcher, and the table at the end."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import typer
import yaml

from dali_aesthetic.commands.outcome import console
from dali_aesthetic.config import Config, ConfigError, merge

if TYPE_CHECKING:
    from dali_aesthetic.launch.result import RunResult, Watch


_BOUNDS = (("unit", "raw", "preset", "top"), ("max_unit", "max_raw"))
"""The fields of a threshold by what they say: each of a group is another spelling of the same."""


class _Launch(Protocol):
    def __call__(self, config: Config, *, watch: Watch | None) -> RunResult: ...


class Saying(NamedTuple):
    """How much a command says: everything, problems only, or the summary as JSON on standard output."""

    quiet: bool = False
    as_json: bool = False
    verbose: bool = False


def run_with(flags: dict[str, Any], file: Path | None, saying: Saying) -> int:
    """Run what flags and file say; the exit code."""
    config = Config.build(over_file(flags, file))
    from dali_aesthetic.launch.filter import run_top
    from dali_aesthetic.launch.run import run
    from dali_aesthetic.launch.slurm import current_task, for_task

    task = current_task()
    if saying.verbose:
        console.print_json(config.model_dump_json())
    if not (task.is_alone or saying.quiet or saying.as_json):
        console.print(f"{task}: every {task.count}th shard, from number {task.index} on")
    config = for_task(config, task)
    launch = partial(run, task=task) if config.threshold.top is None or config.scores_only else run_top
    return _observed(launch, config, saying)


def filter_with(flags: dict[str, Any], scores: str, saying: Saying) -> int:
    """Cut the stored `scores`; the exit code."""
    from dali_aesthetic.launch.filter import filter_scored
    from dali_aesthetic.write.read_scores import read_scored_by

    model = {"heads": read_scored_by(scores)["heads"]}  # LAION's shares are told of its own head only
    config = Config.build(over_file({**flags, "model": model}, None))

    return _observed(lambda config, watch: filter_scored(config, scores, watch=watch), config, saying)


def _observed(launch: _Launch, config: Config, saying: Saying) -> int:
    from dali_aesthetic.observe.session import observing

    say = (lambda text: None) if saying.quiet or saying.as_json else console.print
    with observing(config, _watch(saying), say) as watch:
        result = launch(config, watch=watch)
    return _say(result, config, saying)


def _watch(saying: Saying) -> Watch | None:
    from dali_aesthetic.display import watch_on

    return None if saying.quiet or saying.as_json else partial(watch_on, console)


def _say(result: RunResult, config: Config, saying: Saying) -> int:
    from dali_aesthetic.display import as_dict, problems, summary

    if saying.as_json:
        typer.echo(json.dumps(as_dict(result, config), indent=2))
    elif saying.quiet:
        problems(result.stats, console)
    else:
        summary(result, config, console)
    return result.exit_code


def over_file(flags: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """The nested values of a config: the file's, with the flags that were given on top."""
    base = _read_yaml(file) if file else {}
    if isinstance(cut := base.get("threshold"), dict):
        base["threshold"] = _overruled(cut, flags["threshold"])
    return merge(base, flags)


def _overruled(cut: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """`cut` without other spellings of the bounds that flags give: overruled, they are not in conflict."""
    gone = {name for bound in _BOUNDS if any(flags.get(name) is not None for name in bound) for name in bound}
    return {name: value for name, value in cut.items() if name not in gone}


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_bytes())  # YAML says its own encoding, not the locale
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {file}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config {file}: holds no fields; see configs/ for examples")
    return values
