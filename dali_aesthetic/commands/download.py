"""`download` and `demo`: the weights, and a first look without data of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from dali_aesthetic.commands.command import command, console, print_json
from dali_aesthetic.commands.options import Json
from dali_aesthetic.config import Config

commands = typer.Typer()
DOWNLOAD_EXAMPLES = """
Examples:

  dali-aesthetic download --model-dir models

  dali-aesthetic download --encoder ViT-B-32 --head laion-v1
"""
DEMO_EXAMPLES = """
Examples:

  dali-aesthetic demo --output demo
"""


@command(
    commands,
    "model.model_dir",
    "model.encoder",
    "model.weights",
    "model.heads",
    examples=DOWNLOAD_EXAMPLES,
    descriptions={"model.model_dir": "Folder to download to. (default: the Hugging Face cache)"},
)
def download(given: Mapping[str, Any], json: Json = False) -> int:
    """Fetch the weights of encoder and heads, for machines that compute without internet access."""
    from dali_aesthetic.score import weights

    model = Config.build({"input": "-", "output": "-"}, given).model
    files = weights.download(model.encoder, model.weights, model.heads, model.model_dir)
    if json:
        print_json([asdict(file) for file in files])
        return 0
    for file in files:
        console.print(f"{escape(file.name)}  sha256 {file.sha256}  {escape(file.path)}", soft_wrap=True)
    if not files:
        console.print("nothing to download: random weights and files of your own need nothing")
    return 0


@command(commands, "model.model_dir", "device", examples=DEMO_EXAMPLES)
def demo(
    given: Mapping[str, Any],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="Folder for the demo set and its result.")
    ] = Path("demo"),
    json: Json = False,
) -> int:
    """Make a small set of shards from photos that scikit-image ships, and run on it."""
    from dali_aesthetic.display import as_dict, logged_on, summary

    config = Config.build({"input": "-", "output": "-"}, given)
    with logged_on(console):
        from dali_aesthetic.demo import run_demo

        result, config = run_demo(output, config.model.model_dir, config.device, console)
    if json:
        print_json(as_dict(result, config))
    else:
        summary(result, config, console)
        console.print(f"Look at {escape(config.output)}/: shards/ scores/ stats/ run.json")
    return result.exit_code
