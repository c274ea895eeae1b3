"""`verify` and `report`: what a run has written, checked and looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dali_aesthetic.commands.command import INCOMPLETE, command, console, echo, print_json
from dali_aesthetic.commands.options import Json, Verbose, given_flags
from dali_aesthetic.config import Config, ConfigError

if TYPE_CHECKING:
    from dali_aesthetic.verify.outputs import OutputCheck
    from dali_aesthetic.verify.precision import PrecisionReport

commands = typer.Typer()
VERIFY_EXAMPLES = """
Examples:

  dali-aesthetic verify kept --against-input

  dali-aesthetic verify --precision fp16 --input photos/ --sample 1000 --json > precision.json

Exit code: 0 all right, 1 something is wrong (it is listed), 2 wrong configuration.
"""
REPORT_EXAMPLES = """
Examples:

  dali-aesthetic report kept

  dali-aesthetic report kept --by language --html kept-by-language.html

  dali-aesthetic report scored --where 'min_side >= 512 AND punsafe < 0.5'
"""
_SHOWN = 50
_SAMPLE = 1000
_OF_PRECISION = ("input", "follow_links", "device", "model")


@command(
    commands,
    *_OF_PRECISION,
    examples=VERIFY_EXAMPLES,
    descriptions={"model.precision": "Measure this precision against PIL and fp32."},
)
def verify(
    given: Mapping[str, Any],
    output: Annotated[str | None, typer.Argument(help="The output of a run, a folder or a URL.")] = None,
    against_input: Annotated[
        bool, typer.Option("--against-input", help="Compare every kept byte with the run's input.")
    ] = False,
    sample: Annotated[
        int | None, typer.Option(min=1, help=f"Images to measure the precision on. (default: {_SAMPLE})")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Check what a run wrote, or measure a fast path's score error on your own images (--precision)."""
    if (output is None) == (given["model"]["precision"] is None):
        raise ConfigError("give the output of a run, or --precision with --input, and not both")
    if output is None:
        if against_input:
            raise ConfigError("--against-input is for the output of a run: --precision measures no output")
        from dali_aesthetic.verify.precision import verify_precision

        report = verify_precision(Config.build({"output": "unused"}, given), sample or _SAMPLE)
        if json:
            print_json(report.as_dict())
        else:
            console.print(_precision_table(report))
        return 0
    # An output says itself what it was made from.
    if idle := [*given_flags(given), *(["--sample"] if sample else [])]:
        raise ConfigError(f"{', '.join(idle)}: for --precision alone; the output of a run is checked without")
    from dali_aesthetic.verify.outputs import verify_location

    verdict = verify_location(output, against_input)
    if json:
        print_json(asdict(verdict))
    else:
        _say_verdict(verdict)
    return INCOMPLETE if verdict.problems else 0


@command(
    commands,
    "threshold.where",
    examples=REPORT_EXAMPLES,
    descriptions={
        "threshold.where": "Report on samples for which this SQL condition holds. (default: the run's own)"
    },
)
def report(
    given: Mapping[str, Any],
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output of a run, a folder or a URL.")],
    html: Annotated[Path | None, typer.Option(help="Where the page goes. (default: OUT/report.html)")] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Break the keep rate down by this column of the scores."),
    ] = None,
    json: Json = False,
) -> int:
    """Write one self-contained page to choose a threshold by looking: histogram, keep rates, pictures."""
    from dali_aesthetic.report.page import report_at

    page = report_at(output, html, by, given["threshold"]["where"])
    if json:
        print_json({"page": page})
    else:
        echo(page)
    return 0


def _say_verdict(verdict: OutputCheck) -> None:
    from dali_aesthetic.shards.oddities import WarningCounts

    for name, text in verdict.problems[:_SHOWN]:
        console.print(f"[red]wrong[/] {escape(name)}: {escape(text)}", soft_wrap=True)
    if len(verdict.problems) > _SHOWN:
        console.print(f"... and {len(verdict.problems) - _SHOWN} more")
    if verdict.uncommitted:
        console.print(
            f"not committed, done again by the next run: {escape(', '.join(verdict.uncommitted[:5]))}"
        )
    counts = WarningCounts()
    for name, text in verdict.warnings:
        counts.add(name, [text])
    for line in counts.lines():
        console.print(f"[yellow]warning[/] {escape(line)}", soft_wrap=True)
    compared = ", every kept byte is its input's" if verdict.compared_with_input else ""
    ending = f"{len(verdict.problems)} problems" if verdict.problems else f"all right{compared}"
    console.print(
        f"{verdict.num_shards} shards, {verdict.num_samples:,} samples, {verdict.num_kept:,} kept: {ending}",
        soft_wrap=True,
    )


def _precision_table(report: PrecisionReport) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("path", f"{report.encoder}, {report.backend} {report.precision} on {report.device}")
    found = report.deviation
    table.add_row("images", f"{found.num_images:,}, {report.head} scores spread by {found.reference_std:.3f}")
    table.add_row("mean error", f"{found.mean_error:.5f}")
    table.add_row("p99 error", f"{found.p99_error:.5f}")
    table.add_row("max error", f"{found.max_error:.5f}")
    table.add_row("bias", f"{found.bias:+.5f}")
    for cut in report.flips:
        table.add_row(
            f"flips at {cut['preset']}",
            f"{cut['flipped']} of {found.num_images} (kept: {cut['kept_by_reference']})",
        )
    return table
