"""Commands that look and change nothing: `inspect`, `doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dali_aesthetic.commands.options import Encoder, Engine, Heads, Input, ModelDir, MoreInput, Weights
from dali_aesthetic.commands.outcome import console, guarded

commands = typer.Typer()
Json = Annotated[bool, typer.Option("--json", help="For machines: JSON on standard output.")]
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
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@commands.command(epilog=INSPECT_EXAMPLES)
def inspect(
    more_input: MoreInput = None,
    input: Input = None,
    shards: Annotated[int, typer.Option(min=1, help="Shards to read, spread over the input.")] = 3,
    as_json: Json = False,
) -> None:
    """Look at an input before a run: first keys, members, formats, sizes, samples per shard."""

    def work() -> int:
        from dali_aesthetic.inspect_input import survey

        found = survey([*(input or []), *(more_input or [])], shards).as_dict()
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            console.print(_survey_table(found))
        return 1 if not sum(found["samples_per_shard"].values()) else 0

    guarded(False, work)


@commands.command(epilog=DOCTOR_EXAMPLES)
def doctor(
    input: Input = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder or URL to write to.")] = None,
    engine: Engine = None,
    model_dir: ModelDir = None,
    encoder: Encoder = None,
    weights: Weights = None,
    head: Heads = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Check driver, GPU, decoder, weights, and input, output and Ray where given; failures with their fix."""

    def work() -> int:
        from dali_aesthetic.config import Config, merge
        from dali_aesthetic.doctor import examine
        from dali_aesthetic.reach import Verdict

        model = {"encoder": encoder, "weights": weights, "heads": head, "model_dir": model_dir}
        base = {"input": "-", "output": "-", "device": device}
        config = Config.build(merge(base, {"model": model, "launch": {"engine": engine}}))
        with_ray = config.launch.engine == "ray"
        findings = list(examine(config.model, config.device, output, input or (), with_ray))
        if as_json:
            typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
        else:
            for finding in findings:
                console.print(_line(asdict(finding)), soft_wrap=True)
        return 1 if any(finding.verdict is Verdict.FAIL for finding in findings) else 0

    guarded(False, work)


def _line(finding: dict[str, Any]) -> str:
    verdict = finding["verdict"]
    fix = f"\n       fix: {escape(finding['fix'])}" if finding["fix"] else ""
    return f"[{_COLOURS[verdict]}]{verdict:4}[/] {finding['check']}: {escape(finding['detail'])}{fix}"


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
    for name, damage in found["damage"].items():
        table.add_row("[yellow]damage[/]", escape(f"{name}: {damage}"))
    return table
