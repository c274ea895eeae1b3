"""Score once, cut many times: `score`, `filter`, `select`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import typer

from dali_aesthetic.commands.embeddings import score_stored
from dali_aesthetic.commands.options import (
    AsJson,
    ConfigFile,
    Device,
    Encoder,
    Engine,
    Gpus,
    Heads,
    ImageColumn,
    Input,
    LogJson,
    MaxRaw,
    MaxUnit,
    MetricsHost,
    MetricsPort,
    ModelDir,
    MoreInput,
    Output,
    Precision,
    Preset,
    Quiet,
    Raw,
    Top,
    Unit,
    Verbose,
    Wandb,
    Weights,
    Workers,
    observe_fields,
    threshold_fields,
)
from dali_aesthetic.commands.outcome import WRONG_CONFIGURATION, fail, guarded
from dali_aesthetic.commands.runner import Saying, filter_with, run_with
from dali_aesthetic.config import Config
from dali_aesthetic.embeddings.files import holds_embeddings
from dali_aesthetic.layout import committed_names
from dali_aesthetic.write.read_scores import read_keys, read_raw_scores, scores_record

commands = typer.Typer()
Scores = Annotated[str, typer.Option("--scores", help="Folder that `score` (or `run`) wrote.")]

SCORE_EXAMPLES = """
Examples:

  dali-aesthetic score --input 'data/{00000..00123}.tar' --output scored

  dali-aesthetic filter --input 'data/{00000..00123}.tar' --scores scored --output kept --keep-top 25%
"""
SELECT_EXAMPLES = """
Examples:

  dali-aesthetic select --scores scored --preset high > keys.txt

  dali-aesthetic select --scores scored --keep-top 10% --with-shard
"""


@commands.command(epilog=SCORE_EXAMPLES)
def score(
    more_input: MoreInput = None,
    input: Input = None,
    output: Output = None,
    encoder: Encoder = None,
    weights: Weights = None,
    head: Heads = None,
    model_dir: ModelDir = None,
    device: Device = None,
    engine: Engine = None,
    gpus: Gpus = None,
    workers: Workers = None,
    precision: Precision = None,
    batch_size: Annotated[int | None, typer.Option(help="Images encoded at a time.")] = None,
    num_threads: Annotated[int | None, typer.Option(help="CPU threads that decode.")] = None,
    image_column: ImageColumn = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = None,
    log_json: LogJson = None,
    wandb: Wandb = None,
    config: ConfigFile = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Score every sample and write no images: cut the scores later with `filter`, as often as you like."""
    inputs = [*(input or []), *(more_input or [])]
    if holds_embeddings(inputs):
        model = {"encoder": encoder, "model_dir": model_dir}
        unread = {
            "--config": config, "--weights": weights, "--device": device, "--engine": engine, "--gpus": gpus,
            "--workers": workers, "--precision": precision, "--batch-size": batch_size,
            "--num-threads": num_threads, "--image-column": image_column, "--metrics-port": metrics_port,
            "--metrics-host": metrics_host, "--log-json": log_json, "--wandb": wandb,
        }  # fmt: skip
        if given := [name for name, value in unread.items() if value is not None]:
            refusal = f"{given[0]} is not read for stored embeddings: give --encoder, --head, --output"
            fail(refusal, WRONG_CONFIGURATION)
        saying = Saying(quiet, as_json, verbose)
        guarded(verbose, lambda: score_stored(inputs, output, head, {}, model, saying=saying))
    flags = {
        "input": inputs or None,
        "output": output,
        "scores_only": True,
        "image_column": image_column,
        "device": device,
        "launch": {"engine": engine, "gpus": gpus, "workers": workers},
        "observe": observe_fields(metrics_port, metrics_host, log_json, wandb),
        "threshold": {},
        "model": {
            "encoder": encoder,
            "weights": weights,
            "heads": head,
            "model_dir": model_dir,
            "precision": precision,
        },
        "decode": {"batch_size": batch_size, "num_threads": num_threads},
    }
    guarded(verbose, lambda: run_with(flags, config, Saying(quiet, as_json, verbose)))


@commands.command(name="filter", epilog=SCORE_EXAMPLES)
def filter_command(
    scores: Scores,
    more_input: MoreInput = None,
    input: Input = None,
    output: Output = None,
    threshold: Unit = None,
    raw_threshold: Raw = None,
    preset: Preset = None,
    keep_top: Top = None,
    max_threshold: MaxUnit = None,
    max_raw_threshold: MaxRaw = None,
    image_column: ImageColumn = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Cut stored scores at any threshold and write what `run` would have written. Needs no GPU."""
    flags = {
        "input": [*(input or []), *(more_input or [])] or None,
        "output": output,
        "image_column": image_column,
        "threshold": threshold_fields(
            threshold, raw_threshold, preset, keep_top, max_threshold, max_raw_threshold
        ),
    }
    guarded(verbose, lambda: filter_with(flags, scores, Saying(quiet, as_json, verbose)))


@commands.command(epilog=SELECT_EXAMPLES)
def select(
    scores: Scores,
    threshold: Unit = None,
    raw_threshold: Raw = None,
    preset: Preset = None,
    keep_top: Top = None,
    max_threshold: MaxUnit = None,
    max_raw_threshold: MaxRaw = None,
    with_shard: Annotated[
        bool, typer.Option("--with-shard", help="Source shard and key, separated by a tab.")
    ] = False,
) -> None:
    """Print the keys of the samples within a threshold, one a line, in input order."""
    fields = threshold_fields(threshold, raw_threshold, preset, keep_top, max_threshold, max_raw_threshold)

    def work() -> int:
        pass

        try:
            for source, key in selected(scores, fields):
                typer.echo(f"{source}\t{key}" if with_shard else key)
        except BrokenPipeError:  # `select | head`: who reads has enough, and the interpreter must not flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        return 0

    guarded(False, work)


# FOLDED dali_aesthetic/commands/selection.py: The keys of the samples within a threshold, from stored scores.


def selected(scores: str, fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Source shard and key of each sample within the threshold of `fields`, shard by shard in name order.

    Raises `ConfigError` for a threshold that can't be, `ScoresMismatch` for a folder without scores.
    """
    scores_record(scores)
    threshold = Config.build({"input": "-", "output": "-", "threshold": fields}).threshold
    if threshold.top is not None:
        threshold = threshold.resolve_top(read_raw_scores(scores))
    for name in sorted(committed_names(scores)):
        sources, keys, raw_R = read_keys(scores, name)
        for row in np.flatnonzero(threshold.keep(raw_R)).tolist():
            yield sources[row], keys[row]
