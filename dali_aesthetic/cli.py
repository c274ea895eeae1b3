"""The command line: every command in one program."""

from __future__ import annotations

import faulthandler
from typing import Annotated

import typer

from dali_aesthetic.commands import compact, download, embeddings, filter, inspect, run, verify
from dali_aesthetic.launch.streams import keep_streams
from dali_aesthetic.version import __version__

app = typer.Typer(
    help="Score image datasets by aesthetic quality and keep the good part.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (run, filter, embeddings, verify, compact, inspect, download):
    app.add_typer(module.commands)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of `dali-aesthetic`."""
    keep_streams()
    faulthandler.enable()  # says where it was when a library crashed
    app()
