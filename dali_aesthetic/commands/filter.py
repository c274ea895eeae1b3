"""`filter` and `select`: stored scores, cut as often as one likes."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dali_aesthetic.commands.command import command, echo
from dali_aesthetic.commands.options import ConfigFile, Verbosity, as_yaml, resolve
from dali_aesthetic.commands.run import SCORE_EXAMPLES, launch_and_report
from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.shards.formats import IMAGE_RANK, extension

if TYPE_CHECKING:
    from dali_aesthetic.launch.engine import RunResult, Watch

commands = typer.Typer()
Scores = Annotated[str, typer.Option("--scores", help="Folder that `score` (or `run`) wrote.")]
_TAKES = ("input", "output", "output_format", "threshold", "image_column", "follow_links", "columns")
SELECT_EXAMPLES = """
Examples:

  dali-aesthetic select --scores scored --preset high > keys.txt

  dali-aesthetic select --scores scored --keep-top 10% --with-shard

  dali-aesthetic select --scores scored --where 'min_side >= 512 AND punsafe < 0.5'

  dali-aesthetic select --scores scored --keep-top 10% --paths -0 | xargs -0 cp -t best
"""


@command(commands, *_TAKES, name="filter", examples=SCORE_EXAMPLES)
def filter_command(given: Mapping[str, Any], scores: Scores, file: ConfigFile, verbosity: Verbosity) -> int:
    """Cut stored scores at any threshold and write what `run` would have written. Needs no GPU."""
    from dali_aesthetic.write.read_scores import read_scored_by

    # The summary compares with LAION for its own head only. A file may be the record of the scores.
    fixed = {"model": {"heads": read_scored_by(scores)["heads"]}, "scores_only": False, "part_of": ""}
    resolved = resolve({**given, **fixed}, file.config)
    if file.print_config:
        echo(as_yaml(resolved), nl=False)
        return 0

    def launch(config: Config, *, watch: Watch | None) -> RunResult:
        from dali_aesthetic.launch.filter import filter_scored  # torch: seconds

        return filter_scored(config, scores, watch=watch)

    return launch_and_report(launch, resolved, verbosity)


@command(commands, "threshold", examples=SELECT_EXAMPLES)
def select(
    given: Mapping[str, Any],
    scores: Scores,
    with_shard: Annotated[
        bool, typer.Option("--with-shard", help="Source shard and key, separated by a tab.")
    ] = False,
    paths: Annotated[bool, typer.Option("--paths", help="Paths, for an input of image files.")] = False,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="End each with a NUL character and escape nothing: xargs -0.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each, with its shard.")] = False,
) -> int:
    """Print the keys of the samples within a threshold, one a line, in input order.

    A newline, tab or other control character of a key is printed as an escape; -0 and --json print the exact
    key.
    """
    shown, end = (str, "\0") if null else (one_line, "\n")
    for sources, keys in selected(scores, given["threshold"]):
        if paths and (other := [source for source in sources if extension(source) not in IMAGE_RANK]):
            raise ConfigError(f"--paths: {other[0]} holds more than an image; give --with-shard for its name")
        if json:
            rows = zip(keys, sources, strict=True)
            lines = [jsonlib.dumps({"key": key, "source_shard": source}) for key, source in rows]
        else:
            lines = [shown(text) for text in (sources if paths else keys)]
            if with_shard and not paths:
                names = {source: shown(source) for source in set(sources)}
                lines = [f"{names[source]}\t{line}" for source, line in zip(sources, lines, strict=True)]
        echo("".join(f"{line}{end}" for line in lines), nl=False)
    return 0


def one_line(text: str) -> str:
    """`text` with escapes for its control characters, which would break the line or reach the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def selected(scores: str, fields: Mapping[str, Any]) -> Iterator[tuple[list[str], list[str]]]:
    """Source shards and keys of the samples within the threshold of `fields`, shard by shard in name order.

    Raises `ConfigError` for a threshold that can't be, `ScoresMismatch` for a folder without scores, and
    ValueError for a condition on a column that they don't have.
    """
    from dali_aesthetic.layout import committed_names
    from dali_aesthetic.predicate import Predicate
    from dali_aesthetic.write.read_scores import read_kept, read_raw_scores, scores_record, stored_columns

    scores_record(scores)
    threshold = Config.build({"input": "-", "output": "-"}, {"threshold": fields}).threshold
    if threshold.top is not None:
        threshold = threshold.resolve_top(read_raw_scores(scores))
    columns = stored_columns(scores)
    where = Predicate(threshold.where, columns) if threshold.where and columns else None
    for name in sorted(committed_names(scores)):
        found = read_kept(scores, name, threshold.keep, where)
        yield found.column("source_shard").to_pylist(), found.column("key").to_pylist()
