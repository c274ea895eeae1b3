"""Proof after the fact: `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dali_aesthetic.commands.options import Device, Encoder, Heads, Input, ModelDir, Weights
from dali_aesthetic.commands.outcome import INCOMPLETE, console, guarded
from dali_aesthetic.config import Config, ConfigError, merge

if TYPE_CHECKING:
    from dali_aesthetic.verify.precision import PrecisionReport

commands = typer.Typer()
EXAMPLES = """
Examples:

  dali-aesthetic verify kept --against-input

  dali-aesthetic verify --precision fp16 --input photos/ --sample 1000 --json precision.json

Exit code: 0 all right, 1 something is wrong (it is listed), 2 wrong configuration.
"""
_SHOWN = 50
_SAMPLE = 1000
_NAMES = {"heads": "--head", "model_dir": "--model-dir"}


@commands.command(epilog=EXAMPLES)
def verify(
    output: Annotated[str | None, typer.Argument(help="The output of a run, a folder or a URL.")] = None,
    against_input: Annotated[
        bool, typer.Option("--against-input", help="Compare every kept byte with the run's input.")
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option(help="Measure this precision against PIL and fp32: auto, fp32, fp16, bf16, fp8."),
    ] = None,
    input: Input = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Images to measure the precision on, 1000 if not given.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="auto, eager, torchscript, compile, triton or fused.")
    ] = None,
    device: Device = None,
    encoder: Encoder = None,
    weights: Weights = None,
    head: Heads = None,
    model_dir: ModelDir = None,
    json: Annotated[Path | None, typer.Option("--json", help="File for the result.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
) -> None:
    """Check what a run wrote, or measure a fast path's score error on your own images (--precision)."""
    model = {
        "encoder": encoder,
        "weights": weights,
        "heads": head,
        "model_dir": model_dir,
        "precision": precision,
        "backend": backend,
    }

    def work() -> int:
        if (output is None) == (precision is None):
            raise ConfigError("give the output of a run, or --precision with --input, and not both")
        flags = {"input": input, "device": device, "model": model}
        if output is not None:
            _refuse_idle({"sample": sample, "input": input, "device": device, **model})
            return _verify_output(output, against_input, json)
        if against_input:
            raise ConfigError("--against-input is for the output of a run: --precision measures no output")
        return _verify_precision(flags, sample or _SAMPLE, json)

    guarded(verbose, work)


def _refuse_idle(flags: dict[str, Any]) -> None:
    """Raises ConfigError for what is of no use beside an output, which says itself what it was made from."""
    if idle := ", ".join(_NAMES.get(name, f"--{name}") for name, value in flags.items() if value):
        raise ConfigError(f"{idle}: for --precision alone; the output of a run is checked without")


def _verify_output(output: str, against_input: bool, json: Path | None) -> int:
    from dali_aesthetic.verify.outputs import verify_location

    verdict = verify_location(output, against_input)
    if json is not None:
        json.write_text(verdict.as_json())
    for name, text in verdict.problems[:_SHOWN]:
        console.print(f"[red]wrong[/] {escape(name)}: {escape(text)}", soft_wrap=True)
    if len(verdict.problems) > _SHOWN:
        console.print(f"... and {len(verdict.problems) - _SHOWN} more")
    if verdict.uncommitted:
        console.print(
            f"not committed, done again by the next run: {escape(', '.join(verdict.uncommitted[:5]))}"
        )
    compared = ", every kept byte is its input's" if verdict.compared_with_input else ""
    ending = f"{len(verdict.problems)} problems" if verdict.problems else f"all right{compared}"
    console.print(
        f"{verdict.num_shards} shards, {verdict.num_samples:,} samples, {verdict.num_kept:,} kept: {ending}",
        soft_wrap=True,
    )
    return INCOMPLETE if verdict.problems else 0


def _verify_precision(flags: dict[str, Any], sample: int, json: Path | None) -> int:
    config = Config.build(merge({"output": "unused"}, flags))
    from dali_aesthetic.verify.precision import verify_precision

    report = verify_precision(config, sample)
    if json is not None:
        json.write_text(report.as_json())
    console.print(_precision_table(report))
    return 0


def _precision_table(report: PrecisionReport) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("path", f"{report.encoder}, {report.backend} {report.precision} on {report.device}")
    found = report.deviation
    table.add_row("images", f"{found.num_images:,}, {report.head} scores spread by {found.reference_std:.3f}")
    table.add_row("mean error", f"{found.mean_error:.5f}")
    table.add_row("p99 error", f"{found.p99_error:.5f}")
    table.add_row("max error", f"{found.max_error:.5f}")
    table.add_row("bias", f"{found.bias:+.5f}")
    for cut in report.flips:
        table.add_row(
            f"flips at {cut.preset}", f"{cut.flipped} of {found.num_images} (kept: {cut.kept_by_reference})"
        )
    return table
