"""The command line: flags to a config, a config to a launcher, an outcome to an exit code. No logic."""

from __future__ import annotations

import faulthandler
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from dali_aesthetic import __version__
from dali_aesthetic.commands import compact, embeddings, inspect, report, scores, verify
from dali_aesthetic.commands.options import (
    AsJson,
    ConfigFile,
    Device,
    Encoder,
    Engine,
    Gpus,
    Heads,
    ImageColumn,
    Input,
    LogJson,
    MaxRaw,
    MaxUnit,
    MetricsHost,
    MetricsPort,
    ModelDir,
    MoreInput,
    Output,
    Precision,
    Preset,
    Quiet,
    Raw,
    Top,
    Unit,
    Verbose,
    Wandb,
    Weights,
    Workers,
    observe_fields,
    threshold_fields,
)
from dali_aesthetic.commands.outcome import console, guarded
from dali_aesthetic.commands.runner import Saying, run_with

app = typer.Typer(
    help="Score image datasets by aesthetic quality and keep the good part.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
RUN_EXAMPLES = """
Examples:

  dali-aesthetic run --input 'data/{00000..00123}.tar' --output kept --threshold 0.5

  dali-aesthetic run --input shards/ --output kept --preset high --gpus all

  dali-aesthetic run --input photos/ --output kept --encoder ViT-B-32 --head laion-v1 --raw-threshold 5

Exit code: 0 complete, 1 shards failed (they are named) or it stalled, 2 wrong configuration or an output in
use, 130 and 143 stopped by Ctrl-C and SIGTERM. Whatever ended it: run the same command again to go on.
"""
DOWNLOAD_EXAMPLES = """
Examples:

  dali-aesthetic download --model-dir models

  dali-aesthetic download --encoder ViT-B-32 --head laion-v1
"""
DEMO_EXAMPLES = """
Examples:

  dali-aesthetic demo --output demo
"""
PLAN_EXAMPLES = """
Examples:

  dali-aesthetic plan --images 5e9 --gpus 64 --gpu h100 --price 2.5
"""


app.add_typer(scores.commands)
app.add_typer(inspect.commands)
app.add_typer(embeddings.commands)
app.add_typer(report.commands)
app.add_typer(verify.commands)
app.add_typer(compact.commands)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(epilog=RUN_EXAMPLES)
def run(
    more_input: MoreInput = None,
    input: Input = None,
    output: Output = None,
    threshold: Unit = None,
    raw_threshold: Raw = None,
    preset: Preset = None,
    keep_top: Top = None,
    max_threshold: MaxUnit = None,
    max_raw_threshold: MaxRaw = None,
    encoder: Encoder = None,
    weights: Weights = None,
    head: Heads = None,
    model_dir: ModelDir = None,
    device: Device = None,
    engine: Engine = None,
    gpus: Gpus = None,
    workers: Workers = None,
    precision: Precision = None,
    backend: Annotated[
        str | None,
        typer.Option(help="auto, eager, torchscript, compile, triton or fused. (default: auto)"),
    ] = None,
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
    image_column: ImageColumn = None,
    save_embeddings: Annotated[
        bool | None,
        typer.Option("--save-embeddings", help="Write the CLIP embeddings too, in clip-retrieval's layout."),
    ] = None,
    stall_timeout: Annotated[
        float | None, typer.Option(help="End after this many seconds without progress. (default: 600)")
    ] = None,
    memory_budget: Annotated[
        float | None, typer.Option(help="GiB of encoded images in memory. (default: a quarter of it, max 16)")
    ] = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = None,
    log_json: LogJson = None,
    wandb: Wandb = None,
    config: ConfigFile = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Score every sample, write the kept ones, the scores and the stats; rerun to go on where it stopped."""
    flags = {
        "input": [*(input or []), *(more_input or [])] or None,
        "output": output,
        "device": device,
        "launch": {"engine": engine, "gpus": gpus, "workers": workers},
        "save_embeddings": save_embeddings,
        "observe": observe_fields(metrics_port, metrics_host, log_json, wandb),
        "image_column": image_column,
        "threshold": threshold_fields(
            threshold, raw_threshold, preset, keep_top, max_threshold, max_raw_threshold
        ),
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
    guarded(verbose, lambda: run_with(flags, config, Saying(quiet, as_json, verbose)))


@app.command(epilog=DOWNLOAD_EXAMPLES)
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
            console.print(f"{escape(file.name)}  sha256 {file.sha256}  {escape(file.path)}", soft_wrap=True)
        if not files:
            console.print("nothing to download: random weights and files of your own need nothing")
        return 0

    guarded(False, work)


@app.command(epilog=DEMO_EXAMPLES)
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the demo set and its result.")
    ] = Path("demo"),
    model_dir: ModelDir = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Make a small set of shards from photos that scikit-image ships, and run on it."""
    from dali_aesthetic.demo import run_demo

    guarded(False, lambda: run_demo(output, model_dir, device, console))


@app.command(epilog=PLAN_EXAMPLES)
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
    from dali_aesthetic.cost import make_plan

    def work() -> int:
        answer = make_plan(images, gpus, gpu, price, image_kb, keep)
        typer.echo(answer.as_json() if json else answer.as_text())
        return 0

    guarded(False, work)


def main() -> None:
    """Entry point of `dali-aesthetic`."""
    faulthandler.enable()  # says where it was when a library crashed
    app()
