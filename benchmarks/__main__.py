"""`python -m benchmarks PART`: measure this machine and write result files; see `--help`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any

import typer

from benchmarks.parts import PARTS
from benchmarks.settings import Settings

app = typer.Typer(
    help="How fast each part is on this machine, against the chip and against others.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
RESULTS = Path("benchmarks/results")


def _command(work: Callable[[Settings], None]) -> Callable[..., None]:
    """A command with the options of `Settings`, which are the same for every part."""

    def command(
        device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
        encoder: Annotated[str, typer.Option(help="Default: ViT-L-14 on a GPU, ViT-B-32 on a CPU.")] = "",
        weights: Annotated[str, typer.Option(help="Speed does not depend on them.")] = "random:0",
        head: str = "random:0",
        backend: str = "auto",
        precision: str = "auto",
        batch_size: Annotated[int, typer.Option(min=0, help="0: the default of the device.")] = 0,
        distinct: Annotated[int, typer.Option(min=0, help="Distinct images in a shard; 0: as fits.")] = 0,
        num_shards: Annotated[int, typer.Option(min=0, help="Times the shard is read; 0: as fits.")] = 0,
        repeats: Annotated[int, typer.Option(min=0, help="0: as fits.")] = 0,
        seconds: Annotated[float, typer.Option(min=0, help="Of a repeat without an end; 0: as fits.")] = 0.0,
        quick: Annotated[bool, typer.Option(help="Fewer images and repeats.")] = False,
        resume: Annotated[bool, typer.Option(help="Go on with today's result of the same options.")] = False,
        data: Annotated[Path, typer.Option(help="Where the shards are made.")] = Path("build/bench-data"),
        results: Annotated[Path, typer.Option(help="Where result files go.")] = RESULTS,
    ) -> None:
        work(Settings(**{name: value for name, value in locals().items() if name != "work"}))

    command.__doc__ = work.__doc__
    return command


for _name, _part in PARTS.items():
    app.command(_name)(_command(_part))


def _settings_of(options: Sequence[str]) -> Settings:
    """As any part reads them. An option that parts don't have ends the command here, as it would there."""
    given = typer.Typer()
    given.command()(_command(lambda settings: None))
    found = typer.main.get_command(given).make_context("all", list(options)).params
    return Settings(**{**found, "data": Path(found["data"]), "results": Path(found["results"])})


@app.command("all", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run_everything(
    context: typer.Context,
    minutes: Annotated[float, typer.Option(help="For all parts together.")] = 60,
    resume: Annotated[bool, typer.Option(help="Go on with today's results of the same options.")] = False,
    quick: bool = False,
    device: str = "auto",
    results: Path = RESULTS,
) -> None:
    """Every part that writes a result, each in its own process and time; other options go to the parts."""
    from benchmarks.everything import run_all

    flags = [flag for flag, given in (("--quick", quick), ("--resume", resume)) if given]
    options = [*flags, "--device", device, "--results", str(results), *context.args]
    outcomes = run_all(_settings_of(options), options, minutes, resume)
    for outcome in outcomes:
        typer.echo(f"{outcome.part:<12} {outcome.how:<12} {outcome.seconds:6.0f} s")
    sys.exit(any(outcome.how == "failed" for outcome in outcomes))


@app.command()
def report(results: Annotated[Path, typer.Option(help="Where result files are.")] = RESULTS) -> None:
    """Pages, plots, the README's blocks and the package's rates, from the results that there are."""
    from benchmarks.report import write_report

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
        Path | None, typer.Option(help="Results measured before; else measures now, with the other options.")
    ] = None,
    results: Annotated[Path, typer.Option(help="The committed results.")] = RESULTS,
    minutes: Annotated[float, typer.Option(help="For measuring.")] = 30,
    quick: bool = False,
    device: str = "auto",
) -> None:
    """Compare ratios with the committed ones; exit code 1 where over 10% is lost."""
    from benchmarks import check as guard
    from benchmarks.everything import run_all
    from benchmarks.result import read_results

    if fresh is None:
        fresh = Path("build/bench-check")
        rmtree(fresh, ignore_errors=True)
        options = [
            *(["--quick"] if quick else []),
            "--device",
            device,
            "--results",
            str(fresh),
            *context.args,
        ]
        run_all(_settings_of(options), options, minutes, parts=guard.PARTS)
    verdicts = guard.compare(read_results(fresh), read_results(results))
    for verdict in verdicts:
        typer.echo(str(verdict))
    if not verdicts:
        typer.echo(f"no ratios in {fresh}")
    sys.exit(not verdicts or any(verdict.failed for verdict in verdicts))


@app.command()
def simulate(
    gpu: Annotated[str, typer.Option(help="Whose measured rate a worker has.")] = "h100",
    shards: Annotated[int, typer.Option(min=0, help="0: a million; a few where quick.")] = 0,
    seed: int = 0,
    quick: bool = False,
    results: Path = RESULTS,
) -> None:
    """Simulate clusters of growing size, and show where scaling bends."""
    from benchmarks.simulate import QUICK_SHARDS, QUICK_WORKERS, SHARDS, WORKERS, write_simulation
    from dali_aesthetic.cost import known_rates

    gpu, rates = gpu.lower(), known_rates()
    if gpu not in rates:
        raise typer.BadParameter(f"--gpu {gpu}: measured were {', '.join(rates)}")
    count, sizes = (QUICK_SHARDS, QUICK_WORKERS) if quick else (SHARDS, WORKERS)
    path = write_simulation(results, gpu, rates[gpu], shards or count, sizes, seed)
    typer.echo(f"wrote {path}")


def main() -> Any:
    """Entry point of `python -m benchmarks`. Ended by SIGTERM it ends what it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return app()


if __name__ == "__main__":
    main()
