"""Scores of embeddings that are already there: `score-embeddings`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from dali_aesthetic.commands.options import (
    Embeddings,
    Encoder,
    Heads,
    MaxRaw,
    MaxUnit,
    ModelDir,
    MoreInput,
    Output,
    Preset,
    Raw,
    Unit,
)
from dali_aesthetic.commands.outcome import console, guarded
from dali_aesthetic.commands.runner import Saying
from dali_aesthetic.config import Config, ConfigError

if TYPE_CHECKING:
    from dali_aesthetic.embeddings.score import EmbeddingsResult
    from dali_aesthetic.threshold import Threshold
    from dali_aesthetic.types import ShardReport

commands = typer.Typer()
_ALL = Saying()
EXAMPLES = """
Examples:

  dali-aesthetic score-embeddings --input clip_retrieval_output/ --output scored

  dali-aesthetic score-embeddings --input 'emb/{000..123}.npy' -o scored --head laion-v2 --head laion-v1

  dali-aesthetic select --scores scored --keep-top 25% > keys.txt
"""


@commands.command(name="score-embeddings", epilog=EXAMPLES)
def score_embeddings(
    more_input: MoreInput = None,
    input: Embeddings = None,
    output: Output = None,
    threshold: Unit = None,
    raw_threshold: Raw = None,
    preset: Preset = None,
    max_threshold: MaxUnit = None,
    max_raw_threshold: MaxRaw = None,
    encoder: Encoder = None,
    head: Heads = None,
    model_dir: ModelDir = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Take CLIP embeddings that were stored before normalisation.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
) -> None:
    """Score stored CLIP embeddings (clip-retrieval's or LAION's folders, .npy): no images, no GPU."""
    cut = {
        "unit": threshold,
        "raw": raw_threshold,
        "preset": preset,
        "max_unit": max_threshold,
        "max_raw": max_raw_threshold,
    }
    inputs = [*(input or []), *(more_input or [])]
    model = {"encoder": encoder, "model_dir": model_dir}
    guarded(verbose, lambda: score_stored(inputs, output, head, cut, model, normalize))


def score_stored(
    inputs: Sequence[str],
    output: str | None,
    heads: Sequence[str] | None,
    cut: dict[str, Any],
    model: dict[str, Any],
    normalize: bool = False,
    saying: Saying = _ALL,
) -> int:
    """Score the embeddings that `inputs` name and say what came of it; the exit code."""
    if not inputs or not output:
        raise ConfigError("give the embeddings as --input and a folder as --output")
    from dali_aesthetic.embeddings.score import score_embeddings as score

    bounds = Config.build({"input": "-", "output": "-", "threshold": cut}).threshold
    given = {name: value for name, value in model.items() if value is not None}
    if heads:
        given["heads"] = heads
    silent = saying.quiet or saying.as_json
    progress = None if silent else _progress
    result = score(inputs, output, threshold=bounds, normalize=normalize, progress=progress, **given)
    if saying.as_json:
        typer.echo(json.dumps(_as_dict(result, output, bounds), indent=2))
    elif not saying.quiet:
        _summary(result, bounds, (heads or ["laion-v2"])[0])
    return 0


def _progress(report: ShardReport) -> None:
    console.print(f"{escape(report.name)}  {report.num_samples:,} scored")


def _as_dict(result: EmbeddingsResult, output: str, bounds: Threshold) -> dict[str, Any]:
    """The summary by the names that a run's has."""
    return {
        "output": output,
        "committed": len(result.reports),
        "skipped": result.num_skipped,
        "samples": result.num_rows,
        "bad": result.num_bad,
        "kept": result.num_kept,
        "min_raw": bounds.min_raw,
        "seconds": round(result.seconds, 3),
        "exit_code": 0,
    }


def _summary(result: EmbeddingsResult, bounds: Threshold, head: str) -> None:
    if result.num_skipped:
        console.print(f"{result.num_skipped} files were scored before")
    if result.num_rows:
        share = result.num_kept / result.num_rows
        console.print(
            f"{result.num_rows:,} embeddings at {result.rows_per_second:,.0f}/s, {result.num_bad:,} bad; "
            f"{result.num_kept:,} ({share:.1%}) have {bounds.describe(head)}"
        )
