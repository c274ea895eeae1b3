"""Options that several commands take, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Embeddings = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        help="A .npy, a glob, a {000..123} pattern, a folder of them (clip-retrieval's or LAION's layout), "
        "@list.txt.",
    ),
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        help="A tar, a glob, a {00..99} pattern, a folder of tars or images, Parquet with images, @list.txt; "
        "all but a folder of images also at a URL.",
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
        "--head",
        help="laion-v2, laion-v1, a path, or NAME=FILE to name its column; may repeat, the first decides. "
        "(default: laion-v2)",
    ),
]
ModelDir = Annotated[
    Path | None, typer.Option("--model-dir", help="Folder that is searched for weights first.")
]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, fp16, bf16 or fp8. (default: auto)")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda. (default: auto)")]
Engine = Annotated[
    str | None, typer.Option(help="local, or ray: the actors of a Ray cluster. (default: local)")
]
Gpus = Annotated[
    str | None, typer.Option(help="A process each for so many of this node's GPUs, or all. (default: one)")
]
Workers = Annotated[int | None, typer.Option(help="So many processes on the CPU. (default: one)")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="Folder that receives everything.")]
Top = Annotated[
    str | None,
    typer.Option("--keep-top", help="The best share, such as 25%: scores first, then cuts."),
]
MaxUnit = Annotated[
    float | None, typer.Option("--max-threshold", help="Keep scores up to here, on the 0-1 scale.")
]
MaxRaw = Annotated[
    float | None, typer.Option("--max-raw-threshold", help="The same on the head's own scale.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but what went wrong.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines: the summary as JSON on standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more; show tracebacks.")]
ImageColumn = Annotated[
    str | None, typer.Option(help="Column of a Parquet input with the images. (default: found)")
]
MetricsPort = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Serve metrics for Prometheus here; 0: any free port.")
]
MetricsHost = Annotated[
    str | None, typer.Option(help="At this address; 0.0.0.0 for other machines. (default: 127.0.0.1)")
]
LogJson = Annotated[
    str | None, typer.Option(metavar="FILE", help="Append a JSON line for each event; - is standard error.")
]
Wandb = Annotated[
    str | None, typer.Option(metavar="PROJECT", help="Log to this project of Weights & Biases.")
]
MoreInput = Annotated[list[str] | None, typer.Argument(hidden=True)]
"""Where a shell expanded a pattern that was not quoted."""


def observe_fields(
    port: int | None, host: str | None, log_json: str | None, wandb: str | None
) -> dict[str, Any]:
    """The `observe` section of a config."""
    return {"metrics_port": port, "metrics_host": host, "log_json": log_json, "wandb": wandb}


def threshold_fields(
    unit: float | None,
    raw: float | None,
    preset: str | None,
    top: str | None,
    max_unit: float | None,
    max_raw: float | None,
) -> dict[str, Any]:
    """The `threshold` section of a config."""
    return {"unit": unit, "raw": raw, "preset": preset, "top": top, "max_unit": max_unit, "max_raw": max_raw}
