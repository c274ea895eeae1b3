"""`python -m benchmarks PART`: measure this machine and write result files; see `--help`."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any

import typer

from benchmarks import check as guard
from benchmarks import (
    cold_start,
    encoders,
    end_to_end,
    feed,
    growth,
    host,
    kernels,
    ladder,
    limits,
    precision,
    real_files,
    scaling,
    stages,
    stores,
)
from benchmarks.datasets import MEASURED
from benchmarks.peers import side_by_side
from benchmarks.processes import run_bounded
from benchmarks.report import write_report
from benchmarks.results import read_results
from benchmarks.settings import Settings

RESULTS = Path("benchmarks/results")
app = typer.Typer(
    help="The speed of each part on this machine, against the chip's limits and other programs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def make_data(settings: Settings) -> None:
    """Make the shards of every kind, unless they exist."""
    for kind, short_side in MEASURED:
        settings.datasets.make(kind, short_side)
        print(f"  {settings.datasets.spec(kind, short_side)}")
    settings.host_shards()
    side_by_side.make_job(settings)


@dataclass(frozen=True, slots=True)
class Part:
    """A command that measures one theme.

    `all` gives it `bound_s` seconds on a GPU when quick, else ten times as many; 0 leaves it out of `all`.
    `theme` is the name of its result file, if it differs from the part's.
    """

    measure: Callable[[Settings], None]
    bound_s: float = 0
    theme: str = ""


PARTS: dict[str, Part] = {
    "data": Part(make_data, 60),
    "end-to-end": Part(end_to_end.measure, 340),
    "peers": Part(side_by_side.measure, 540),
    "feed": Part(feed.measure, 270),
    "precision": Part(precision.measure, 90),
    "ceilings": Part(limits.measure, 60),
    "encoders": Part(encoders.measure, 150),
    "cold-start": Part(cold_start.measure, 260),
    "ladder": Part(ladder.measure, 280, theme="encoder"),
    "kernels": Part(kernels.measure, 90),
    "stages": Part(stages.measure, 90),
    "growth": Part(growth.measure, 240),
    "host": Part(host.measure, 45),
    "scaling": Part(scaling.measure),  # all GPUs of a host
    "real-files": Part(real_files.measure),  # tars of real files
    "stores": Part(stores.measure),  # a server on loopback
    "where": Part(stages.print_stages),
    "profile": Part(host.profile),
}
"""By name, the most important first: `all` may run out of time."""
IN_ALL = tuple(name for name, part in PARTS.items() if part.bound_s)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended: `done`, `resumed`, `cut off`, `failed` or `no time left`."""

    part: str
    how: str
    seconds: float


def run_all(
    settings: Settings,
    options: Sequence[str],
    minutes: float,
    resume: bool = False,
    parts: Sequence[str] = IN_ALL,
) -> list[Outcome]:
    """Run each part in a process of its own, all for at most `minutes`; `options` are those of `settings`.

    A part that fails or is cut off keeps its rows, and the next one follows. `resume` leaves out parts with a
    complete result of today and of these settings; other parts continue with the rows they have.
    """
    end = time.monotonic() + 60 * minutes
    outcomes = []
    for name in parts:
        part, left = PARTS[name], end - time.monotonic()
        if resume and name != "data" and _is_complete(settings, part.theme or name):
            outcomes.append(Outcome(name, "resumed", 0.0))
        elif left < 5:
            outcomes.append(Outcome(name, "no time left", 0.0))
        else:
            bound_s = part.bound_s * (1 if settings.quick and settings.on_gpu else 10)
            outcomes.append(_run(name, options, min(bound_s, left)))
    return outcomes


def _run(name: str, options: Sequence[str], bound_s: float) -> Outcome:
    print(f"== {name} (at most {bound_s:.0f} s)", flush=True)
    start = time.monotonic()
    code = run_bounded([sys.executable, "-m", "benchmarks", name, *options], bound_s)
    how = "cut off" if code is None else "failed" if code else "done"
    seconds = time.monotonic() - start
    print(f"== {name} {how} after {seconds:.0f} s", flush=True)
    return Outcome(name, how, seconds)


def _is_complete(settings: Settings, theme: str) -> bool:
    return bool(replace(settings, resume=True).record(theme).get("complete"))


def _command(work: Callable[[Settings], None]) -> Callable[..., None]:
    """A command with the options of `Settings`."""

    def command(
        device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
        encoder: Annotated[str, typer.Option(help="Default: ViT-L-14 on a GPU, ViT-B-32 on a CPU.")] = "",
        weights: Annotated[str, typer.Option(help="Speed does not depend on them.")] = "random:0",
        head: str = "random:0",
        backend: str = "auto",
        precision: str = "auto",
        batch_size: Annotated[int, typer.Option(min=0, help="0: the default of the device.")] = 0,
        distinct: Annotated[int, typer.Option(min=0, help="Distinct images in a shard; 0: by device.")] = 0,
        num_shards: Annotated[int, typer.Option(min=0, help="Links to the shard; 0: by device.")] = 0,
        repeats: Annotated[int, typer.Option(min=0, help="0: by part.")] = 0,
        seconds: Annotated[float, typer.Option(min=0, help="Of a repeat without an end; 0: by part.")] = 0.0,
        quick: Annotated[bool, typer.Option(help="Fewer images and repeats.")] = False,
        resume: Annotated[bool, typer.Option(help="Continue today's result of the same options.")] = False,
        data: Annotated[Path, typer.Option(help="Folder for the shards.")] = Path("build/bench-data"),
        results: Annotated[Path, typer.Option(help="Folder for result files.")] = RESULTS,
    ) -> None:
        work(Settings(**{name: value for name, value in locals().items() if name != "work"}))

    command.__doc__ = work.__doc__
    return command


for _name, _part in PARTS.items():
    app.command(_name)(_command(_part.measure))


def _settings_of(options: Sequence[str]) -> Settings:
    """The settings that a part would read from `options`; an unknown option exits as it would there."""
    given = typer.Typer()
    given.command()(_command(lambda settings: None))
    found = typer.main.get_command(given).make_context("all", list(options)).params
    return Settings(**{**found, "data": Path(found["data"]), "results": Path(found["results"])})


@app.command("all", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run_everything(
    context: typer.Context,
    minutes: Annotated[float, typer.Option(help="For all parts together.")] = 60,
    resume: Annotated[bool, typer.Option(help="Continue today's results of the same options.")] = False,
    quick: bool = False,
    device: str = "auto",
    results: Path = RESULTS,
) -> None:
    """Run every part that measures one device, each in its own process; other options go to the parts."""
    flags = [flag for flag, given in (("--quick", quick), ("--resume", resume)) if given]
    options = [*flags, "--device", device, "--results", str(results), *context.args]
    outcomes = run_all(_settings_of(options), options, minutes, resume)
    for outcome in outcomes:
        typer.echo(f"{outcome.part:<12} {outcome.how:<12} {outcome.seconds:6.0f} s")
    sys.exit(any(outcome.how == "failed" for outcome in outcomes))


@app.command()
def report(results: Annotated[Path, typer.Option(help="Folder with result files.")] = RESULTS) -> None:
    """Write pages, plots, the documents' blocks and the package's rates from the results."""
    try:
        written = write_report(results)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    for path in written:
        typer.echo(f"wrote {path}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def check(
    context: typer.Context,
    fresh: Annotated[
        Path | None, typer.Option(help="Folder with fresh results; else measures, with the other options.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder with the committed results.")] = RESULTS,
    minutes: Annotated[float, typer.Option(help="For measuring.")] = 30,
    quick: bool = False,
    device: str = "auto",
) -> None:
    """Compare ratios with the committed ones; exit code 1 if one is over 10% lower."""
    if fresh is None:
        fresh = Path("build/bench-check")
        rmtree(fresh, ignore_errors=True)
        flags = ["--quick"] if quick else []
        options = [*flags, "--device", device, "--results", str(fresh), *context.args]
        run_all(_settings_of(options), options, minutes, parts=guard.PARTS)
    verdicts = guard.compare(read_results(fresh), read_results(results))
    for verdict in verdicts:
        typer.echo(str(verdict))
    if not verdicts:
        typer.echo(f"no ratios in {fresh}")
    sys.exit(not verdicts or any(verdict.failed for verdict in verdicts))


def main() -> Any:
    """Entry point of `python -m benchmarks`. On SIGTERM it exits, which ends the processes it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return app()


if __name__ == "__main__":
    main()
