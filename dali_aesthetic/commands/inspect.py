"""`inspect`, `doctor` and `plan`: what to know before a run. They change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dali_aesthetic.commands.command import INCOMPLETE, command, console, echo, print_json
from dali_aesthetic.commands.options import Json
from dali_aesthetic.config import Config

commands = typer.Typer()
INSPECT_EXAMPLES = """
Examples:

  dali-aesthetic inspect --input 'data/{00000..00123}.tar' --shards 5
"""
DOCTOR_EXAMPLES = """
Examples:

  dali-aesthetic doctor --output kept --model-dir models

  dali-aesthetic doctor --input s3://bucket/shards/ --output s3://bucket/kept --engine ray

Exit code: 0 fit to run, 1 a check failed.
"""
PLAN_EXAMPLES = """
Examples:

  dali-aesthetic plan --images 5B --gpus 64 --gpu h100 --price 2.5
"""
_CHECKED = (
    "input", "follow_links", "output", "launch.engine", "model.encoder", "model.weights", "model.heads",
    "model.model_dir", "device",
)  # fmt: skip
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@command(commands, "input", "follow_links", examples=INSPECT_EXAMPLES)
def inspect(
    given: Mapping[str, Any],
    shards: Annotated[int, typer.Option(min=1, help="Shards to read, spread over the input.")] = 3,
    json: Json = False,
) -> int:
    """Look at an input before a run: first keys, members, formats, sizes, samples per shard."""
    from dali_aesthetic.inspect_input import survey

    config = Config.build({"output": "-"}, given)
    found = survey(config.input, shards, follow_links=config.follow_links).as_dict()
    if json:
        print_json(found)
    else:
        console.print(_survey_table(found))
    return 0 if sum(found["samples_per_shard"].values()) else INCOMPLETE


@command(commands, *_CHECKED, examples=DOCTOR_EXAMPLES)
def doctor(given: Mapping[str, Any], json: Json = False) -> int:
    """Check driver, GPU, decoder, weights, and input, output and Ray where given; failures with their fix."""
    from dali_aesthetic.doctor import examine
    from dali_aesthetic.reach import Verdict

    # Neither input nor output need be given, and whether they can be used is for the doctor to say.
    config = Config.build({}, {**given, "input": "-", "output": "-"})
    with_ray = config.launch.engine == "ray"
    places = given["output"], given["input"] or ()
    findings = list(examine(config.model, config.device, *places, with_ray, follow_links=config.follow_links))
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        for one in findings:
            verdict = f"[{_COLOURS[one.verdict]}]{one.verdict:4}[/]"
            fix = f"\n       fix: {escape(one.fix)}" if one.fix else ""
            console.print(f"{verdict} {one.check}: {escape(one.detail)}{fix}", soft_wrap=True)
    return INCOMPLETE if any(finding.verdict is Verdict.FAIL for finding in findings) else 0


@command(commands, examples=PLAN_EXAMPLES)
def plan(
    images: Annotated[str, typer.Option(metavar="NUMBER", help="How many, such as 10M, 1.5B or 5e9.")],
    gpus: Annotated[int, typer.Option(min=1, help="GPUs at work at the same time.")] = 1,
    gpu: Annotated[str, typer.Option(help="The kind: one that was measured, such as h100.")] = "h100",
    price: Annotated[
        float | None, typer.Option(min=0, help="Of a GPU-hour. (default: no cost is shown)")
    ] = None,
    image_kb: Annotated[float, typer.Option(help="Size of a sample, in KB of 1000 bytes.")] = 100,
    keep: Annotated[float, typer.Option(min=0, max=1, help="Share of the images kept, 0 to 1.")] = 0.25,
    json: Json = False,
) -> int:
    """Say how many hours and GPU-hours a run takes, what it costs, and what the storage must give."""
    from dali_aesthetic.cost import make_plan, read_count

    answer = make_plan(read_count(images), gpus, gpu, price, image_kb, keep)
    echo(answer.as_json() if json else answer.as_text())
    return 0


def _survey_table(found: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2))
    per_shard = found["samples_per_shard"]
    table.add_row("shards", f"{found['num_shards']:,}, {found['num_read']} read")
    counts = ", ".join(f"{name} {count:,}" for name, count in per_shard.items())
    table.add_row("samples", f"about {found['estimated_samples']:,} ({escape(counts)})")
    for title in ("formats", "statuses", "extensions"):
        table.add_row(title, escape(", ".join(f"{name} {n:,}" for name, n in found[title].items())))
    for title, unit in (("kilobytes", "kB an image"), ("short_side", "pixels, short side")):
        table.add_row(unit, ", ".join(f"{name} {value:g}" for name, value in found[title].items()))
    for sample in found["first"]:
        members = ", ".join(f"{member['name']} ({member['bytes']:,} B)" for member in sample["members"])
        table.add_row("sample", escape(f"{sample['key']}: {sample['format']} {sample['size']}; {members}"))
    for name, warnings in found["warnings"].items():
        for warning in warnings:
            table.add_row("[yellow]warning[/]", escape(f"{name}: {warning}"))
    for name, damage in found["damage"].items():
        table.add_row("[yellow]damage[/]", escape(f"{name}: {damage}"))
    return table
