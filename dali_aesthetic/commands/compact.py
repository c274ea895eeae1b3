"""`compact` and `push`: an output in the form in which others take it, and where they find it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dali_aesthetic.commands.command import INCOMPLETE, command, console, echo, print_json
from dali_aesthetic.commands.options import Json, Verbosity
from dali_aesthetic.config import ConfigError

if TYPE_CHECKING:
    from dali_aesthetic.compact.job import Options, Result
    from dali_aesthetic.compact.pack import Packed, Size

commands = typer.Typer()
_PROBLEMS_SHOWN = 5
EXAMPLES = """
Examples:

  dali-aesthetic compact kept --output packed --samples-per-shard 10000

  dali-aesthetic compact kept --output packed --bytes-per-shard 1GB --index --subset-file kept.npy

Exit code: 0 complete, 1 shards without an index, 2 nothing that could be packed. Whatever ended it: the same
command goes on.
"""


PUSH_EXAMPLES = """
Examples:

  dali-aesthetic push packed --repo me/best-photos --private

Exit code: 0 complete, 1 the Hub refused or could not be reached, 2 wrong configuration.
"""


@command(commands, examples=PUSH_EXAMPLES)
def push(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The output of a finished run, or packed.")],
    repo: Annotated[
        str, typer.Option(metavar="USER/NAME", help="The data set; it is made if it isn't there.")
    ],
    private: Annotated[bool, typer.Option("--private", help="A new one is private.")] = False,
    allow_unfinished: Annotated[
        bool, typer.Option("--allow-unfinished", help="Push what is committed, though shards are missing.")
    ] = False,
    json: Json = False,
) -> int:
    """Upload kept samples and scores to the Hugging Face Hub, with a card of counts, cut and histogram."""
    from dali_aesthetic.publish import push as upload

    url = upload(output, repo, private=private, allow_unfinished=allow_unfinished)
    if json:
        print_json({"url": url})
    else:
        echo(url)
    return 0


@command(commands, examples=EXAMPLES)
def compact(
    run: Annotated[Path, typer.Argument(metavar="OUT", help="The output of a finished run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the packed shards.")],
    samples_per_shard: Annotated[
        int | None, typer.Option(min=1, help="Samples in a packed shard. (default: 10000)")
    ] = None,
    bytes_per_shard: Annotated[
        str | None, typer.Option(help="Its size at most, such as 1GB or 512MiB. (default: no limit)")
    ] = None,
    index: Annotated[
        bool, typer.Option("--index", help="Write NAME.idx beside each tar, for DALI's webdataset reader.")
    ] = False,
    subset_file: Annotated[
        Path | None,
        typer.Option(help="Write the kept samples' uids here, as DataComp's resharder takes them."),
    ] = None,
    allow_unfinished: Annotated[
        bool, typer.Option("--allow-unfinished", help="Pack what is committed, though shards are missing.")
    ] = False,
    *,
    verbosity: Verbosity,
) -> int:
    """Pack the small kept shards of a run into few of an even size; every entry stays as it is."""

    from dali_aesthetic.compact.job import Options

    options = Options(
        run=run,
        output=output,
        index=index,
        subset_file=subset_file,
        allow_unfinished=allow_unfinished,
        **_size(samples_per_shard, bytes_per_shard),
    )
    result = _packed(options, verbosity.silent)
    if verbosity.json:
        print_json(asdict(result))
    elif not verbosity.quiet:
        console.print(_sentence(result, options), soft_wrap=True)
    for problem in result.without_index[:_PROBLEMS_SHOWN]:
        console.print(escape(problem), soft_wrap=True)
    if result.without_index:
        console.print(f"{len(result.without_index):,} of {result.num_shards:,} shards have no index")
    return INCOMPLETE if result.without_index else 0


def _size(samples: int | None, text: str | None) -> dict[str, Size]:
    """The size that was given; nothing where none was, for the default of `Options`."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    from dali_aesthetic.compact.pack import Size

    try:
        num_bytes = None if text is None else int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise ConfigError(f"--bytes-per-shard {text!r} is no size: write it like 1GB or 512MiB") from None
    if num_bytes is not None and num_bytes < 1:
        raise ConfigError(f"--bytes-per-shard {text!r}: give at least one byte")
    return {} if samples is None and num_bytes is None else {"size": Size(samples, num_bytes)}


def _packed(options: Options, silent: bool) -> Result:
    from dali_aesthetic.compact.job import compact as pack

    if silent or not console.is_terminal:
        return pack(options)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("samples"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)

        def show(shard: Packed, total: int) -> None:
            progress.update(task, advance=shard.num_samples, total=total)

        return pack(options, show)


def _sentence(result: Result, options: Options) -> str:
    before = f", {result.num_there} of them there before" if result.num_there else ""
    return escape(
        f"{result.num_samples:,} kept samples ({result.num_bytes / 1e9:,.2f} GB) of "
        f"{result.num_source_shards:,} shards are in {result.num_shards:,}{before}: {options.output}, "
        f"in {result.seconds:,.1f} s"
    )
