"""The command line: flags to a config, a config to a launcher, an outcome to an exit code. No logic."""

from __future__ import annotations

import faulthandler
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from dali_aesthetic import __version__
from dali_aesthetic.config import Config, ConfigError, merge
from dali_aesthetic.launch.signals import Stopped, stoppable

app = typer.Typer(
    help="Score image datasets by aesthetic quality and keep the good part.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True, highlight=False)

INCOMPLETE, WRONG_CONFIGURATION = 1, 2
RUN_EXAMPLES = """
Examples:

  dali-aesthetic run --input 'data/{00000..00123}.tar' --output kept --threshold 0.5

  dali-aesthetic run --input photos/ --output kept --encoder ViT-B-32 --head laion-v1 --raw-threshold 5

Exit code: 0 complete, 1 shards failed (they are named) or it stalled, 2 wrong configuration or an output in
use, 130 and 143 stopped by Ctrl-C and SIGTERM. Whatever ended it: run the same command again to go on.
"""

Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input", "-i", help="A tar, a glob, a {00..99} pattern, a folder of tars or images, @list.txt."
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML with the same fields; flags win over it.")
]
Unit = Annotated[
    float | None, typer.Option("--threshold", help="Keep scores from here up, on the 0-1 scale (raw / 10).")
]
Raw = Annotated[
    float | None, typer.Option("--raw-threshold", help="The same on the head's own scale, such as 5.0.")
]
Preset = Annotated[
    str | None, typer.Option("--preset", help="permissive, standard, high, premium, laion-4.5 ... laion-6.5.")
]
Encoder = Annotated[str | None, typer.Option("--encoder", help="Any open_clip ViT name. (default: ViT-L-14)")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="openai, random[:SEED] or a path. (default: openai)")
]
Heads = Annotated[
    list[str] | None,
    typer.Option(
        "--head", help="laion-v2, laion-v1 or a path; may repeat, the first decides. (default: laion-v2)"
    ),
]
ModelDir = Annotated[
    Path | None, typer.Option("--model-dir", help="Folder that is searched for weights first.")
]
"""Shared by `run` and `download`."""


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(epilog=RUN_EXAMPLES)
def run(
    more_input: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    input: Input = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder that receives everything.")
    ] = None,
    threshold: Unit = None,
    raw_threshold: Raw = None,
    preset: Preset = None,
    encoder: Encoder = None,
    weights: Weights = None,
    head: Heads = None,
    model_dir: ModelDir = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. (default: auto)")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, fp16 or bf16. (default: auto)")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, eager or torchscript. (default: auto)")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images encoded at a time. (default: what suits the backend)")
    ] = None,
    num_threads: Annotated[
        int | None, typer.Option(help="CPU threads that decode. (default: all cores)")
    ] = None,
    apply_exif: Annotated[
        bool | None,
        typer.Option("--apply-exif", help="Turn images upright first. (default: as stored, as CLIP does)"),
    ] = None,
    max_bad_fraction: Annotated[
        float | None,
        typer.Option(help="A shard with a larger share of bad samples fails; 1 accepts any. (default: 0.5)"),
    ] = None,
    quarantine: Annotated[
        bool | None, typer.Option("--quarantine", help="Keep a copy of the samples that can't be scored.")
    ] = None,
    stall_timeout: Annotated[
        float | None, typer.Option(help="End after this many seconds without progress. (default: 600)")
    ] = None,
    memory_budget: Annotated[
        float | None, typer.Option(help="GiB of encoded images in memory. (default: a quarter of it, max 16)")
    ] = None,
    config: ConfigFile = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more; show tracebacks.")] = False,
) -> None:
    """Score every sample, write the kept ones, the scores and the stats; rerun to go on where it stopped."""
    flags = {
        "input": [*(input or []), *(more_input or [])] or None,
        "output": output,
        "device": device,
        "threshold": {"unit": threshold, "raw": raw_threshold, "preset": preset},
        "model": {
            "encoder": encoder,
            "weights": weights,
            "heads": head,
            "model_dir": model_dir,
            "precision": precision,
            "backend": backend,
        },
        "decode": {"batch_size": batch_size, "num_threads": num_threads, "apply_exif": apply_exif},
        "guard": {
            "max_bad_fraction": max_bad_fraction,
            "quarantine": quarantine,
            "stall_timeout": stall_timeout,
            "memory_budget_gb": memory_budget,
        },
    }
    _guarded(verbose, lambda: _run(flags, config, verbose))


@app.command()
def download(
    model_dir: ModelDir = None, encoder: Encoder = None, weights: Weights = None, head: Heads = None
) -> None:
    """Fetch the weights of encoder and heads, for machines that compute without internet access."""
    from dali_aesthetic.config import ModelConfig
    from dali_aesthetic.score.weights import download as fetch

    default = ModelConfig()

    def work() -> int:
        files = fetch(
            encoder or default.encoder, weights or default.weights, tuple(head or default.heads), model_dir
        )
        for file in files:
            console.print(f"{file.name}  sha256 {file.sha256}  {file.path}")
        return 0

    _guarded(False, work)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the demo set and its result.")
    ] = Path("demo"),
    model_dir: ModelDir = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Make a small set of shards from photos that scikit-image ships, and run on it."""
    from dali_aesthetic.demo import run_demo

    _guarded(False, lambda: run_demo(output, model_dir, device, console))


@app.command()
def plan(
    images: Annotated[float, typer.Option(help="How many, such as 5e9.")],
    gpus: Annotated[int, typer.Option(help="GPUs at work at the same time.")] = 1,
    gpu: Annotated[str, typer.Option(help="The kind: one that was measured, such as h100.")] = "h100",
    price: Annotated[float | None, typer.Option(help="Of a GPU-hour. (default: no cost is shown)")] = None,
    image_kb: Annotated[float, typer.Option(help="Size of a sample, in KB of 1000 bytes.")] = 100,
    keep: Annotated[float, typer.Option(help="Share of the images kept, 0 to 1.")] = 0.25,
    json: Annotated[bool, typer.Option("--json", help="All figures as JSON.")] = False,
) -> None:
    """Say how many hours and GPU-hours a run takes, what it costs, and what the storage must give."""
    from dali_aesthetic.plan import make_plan

    def work() -> int:
        answer = make_plan(images, gpus, gpu, price, image_kb, keep)
        typer.echo(answer.as_json() if json else answer.as_text())
        return 0

    _guarded(False, work)


def _run(flags: dict[str, Any], file: Path | None, verbose: bool) -> int:
    config = Config.build(_over_file(flags, file))
    from functools import partial

    from dali_aesthetic.display import summary, watch_on
    from dali_aesthetic.launch.local import run as launch

    if verbose:
        console.print_json(config.model_dump_json())
    result = launch(config, watch=partial(watch_on, console))
    summary(result, config, console)
    return result.exit_code


def _over_file(flags: dict[str, Any], file: Path | None) -> dict[str, Any]:
    base = _read_yaml(file) if file else {}
    if any(value is not None for value in flags["threshold"].values()):
        base.pop("threshold", None)  # another spelling in the file is overruled, not in conflict
    return merge(base, flags)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {file}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config {file}: holds no fields; see configs/ for examples")
    return values


def _guarded(verbose: bool, work: Callable[[], int]) -> NoReturn:
    """Run `work` and exit with its code; what the user can mend is one message, not a traceback."""
    try:
        with stoppable():
            code = work()
        sys.exit(code)
    except Stopped as stopped:
        _fail(
            f"{stopped}: committed shards are kept; run the same command again to go on",
            128 + stopped.signal,
        )
    except Exception as error:
        if verbose:
            traceback.print_exc()
        _fail(str(error) if str(error) else type(error).__name__, _exit_code(error))


def _exit_code(error: Exception) -> int:
    from dali_aesthetic.score.download import WeightsUnavailable

    return WRONG_CONFIGURATION if isinstance(error, ValueError | WeightsUnavailable) else INCOMPLETE


def _fail(message: str, code: int) -> NoReturn:
    console.print(f"[red]error[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)


def main() -> None:
    """Entry point of `dali-aesthetic`."""
    faulthandler.enable()  # says where it was when a mapped file shrank (SIGBUS) or a library crashed
    app()
