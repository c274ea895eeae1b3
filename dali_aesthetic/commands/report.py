"""`report`: a page to choose a threshold by looking."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dali_aesthetic.commands.outcome import guarded

commands = typer.Typer()
REPORT_EXAMPLES = """
Examples:

  dali-aesthetic report kept

  dali-aesthetic report kept --by language --html kept-by-language.html
"""


@commands.command(epilog=REPORT_EXAMPLES)
def report(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output of a run, a folder or a URL.")],
    html: Annotated[Path | None, typer.Option(help="Where the page goes. (default: OUT/report.html)")] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Break the keep rate down by this column of the scores."),
    ] = None,
) -> None:
    """Write one self-contained page to choose a threshold by looking: histogram, keep rates, pictures."""

    def work() -> int:
        from dali_aesthetic.report.page import report_at

        typer.echo(report_at(output, html, by))
        return 0

    guarded(False, work)
