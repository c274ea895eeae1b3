"""Flags over a file to a config, a config to its launcher, and the table at the end."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dali_aesthetic.commands.outcome import console
from dali_aesthetic.config import Config, ConfigError, merge


def run_with(flags: dict[str, Any], file: Path | None, verbose: bool) -> int:
    """Run what flags and file say; the exit code."""
    config = Config.build(over_file(flags, file))
    from dali_aesthetic.display import summary, watch_on
    from dali_aesthetic.launch.local import run
    from dali_aesthetic.launch.refilter import run_top

    if verbose:
        console.print_json(config.model_dump_json())
    launch = run if config.threshold.top is None or config.scores_only else run_top
    result = launch(config, watch=partial(watch_on, console))
    summary(result, config, console)
    return result.exit_code


def filter_with(flags: dict[str, Any], scores: str) -> int:
    """Cut the stored `scores`; the exit code."""
    config = Config.build(over_file(flags, None))
    from dali_aesthetic.display import summary, watch_on
    from dali_aesthetic.launch.refilter import filter_scored

    result = filter_scored(config, scores, watch=partial(watch_on, console))
    summary(result, config, console)
    return result.exit_code


def over_file(flags: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """The nested values of a config: the file's, with the flags that were given on top."""
    base = _read_yaml(file) if file else {}
    if any(value is not None for value in flags["threshold"].values()):
        base.pop("threshold", None)  # another spelling in the file is overruled, not in conflict
    return merge(base, flags)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {file}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config {file}: holds no fields; see configs/ for examples")
    return values
