"""`score-embeddings`: scores of embeddings that are already there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from dali_aesthetic.commands.command import command, console, print_json
from dali_aesthetic.commands.options import Verbosity, resolve
from dali_aesthetic.config import Config

if TYPE_CHECKING:
    from dali_aesthetic.embeddings.score import EmbeddingsResult
    from dali_aesthetic.types import ShardReport

commands = typer.Typer()
EXAMPLES = """
Examples:

  dali-aesthetic score-embeddings --input clip_retrieval_output/ --output scored

  dali-aesthetic score-embeddings --input 'emb/{000..123}.npy' -o scored --head laion-v2 --head laion-v1

  dali-aesthetic select --scores scored --keep-top 25% > keys.txt
"""
_TAKES = (
    "input", "output", "threshold.unit", "threshold.raw", "threshold.preset", "threshold.max_unit",
    "threshold.max_raw", "model.encoder", "model.heads", "model.model_dir", "columns",
)  # fmt: skip
_INPUT = (
    "A .npy, a glob, a {000..123} pattern, a folder of them (clip-retrieval's or LAION's layout), @list.txt."
)


@command(commands, *_TAKES, name="score-embeddings", examples=EXAMPLES, descriptions={"input": _INPUT})
def score_embeddings(
    given: Mapping[str, Any],
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Take CLIP embeddings that were stored before normalisation.")
    ] = False,
    *,
    verbosity: Verbosity,
) -> int:
    """Score stored CLIP embeddings (clip-retrieval's or LAION's folders, .npy): no images, no GPU."""
    return score_stored(resolve(given), verbosity, normalize)


def score_stored(config: Config, verbosity: Verbosity, normalize: bool = False) -> int:
    """Score the embeddings that the input names and say what came of it; the exit code."""
    from dali_aesthetic.embeddings.score import score_embeddings as score

    def show(report: ShardReport) -> None:
        console.print(f"{escape(report.name)}  {report.num_samples:,} scored")

    result = score(
        config.input,
        config.output,
        config.model.heads,
        encoder=config.model.encoder,
        model_dir=config.model.model_dir,
        threshold=config.threshold,
        normalize=normalize,
        columns=config.columns,
        progress=None if verbosity.silent else show,
    )
    if verbosity.json:
        print_json(_as_dict(result, config))
    elif not verbosity.quiet:
        _summary(result, config)
    return 0


def _as_dict(result: EmbeddingsResult, config: Config) -> dict[str, Any]:
    """The summary by the names that a run's has."""
    return {
        "output": config.output,
        "committed": len(result.reports),
        "skipped": result.num_skipped,
        "samples": result.num_rows,
        "bad": result.num_bad,
        "kept": result.num_kept,
        "min_raw": config.threshold.min_raw,
        "seconds": round(result.seconds, 3),
        "exit_code": 0,
    }


def _summary(result: EmbeddingsResult, config: Config) -> None:
    if result.num_skipped:
        console.print(f"{result.num_skipped} files were scored before")
    if result.num_rows:
        share, rate = result.num_kept / result.num_rows, result.num_rows / max(result.seconds, 1e-9)
        console.print(
            f"{result.num_rows:,} embeddings at {rate:,.0f}/s, {result.num_bad:,} bad; "
            f"{result.num_kept:,} ({share:.1%}) have {config.threshold.describe(config.model.heads[0])}"
        )
