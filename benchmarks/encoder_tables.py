"""The encoder alone in every way to run it, and the ladder of its steps with their score errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import (
    Cell,
    gpu,
    link,
    median,
    on_gpus,
    percent,
    plot,
    rows_table,
    skipped,
    source,
    table,
)
from benchmarks.results import Result, Row, newest
from benchmarks.roofline import VIT_L_14, needed_flops

_OPEN_CLIP = "open_clip eager"
_LADDER_BASE = "open_clip eager pure fp16"
"""All of open_clip's tower in fp16, its fastest way; `open_clip eager fp16` keeps LayerNorm in float32."""
_ERROR = "score error, mean / p99"
_ERROR_COLUMNS = ("mean", "p99", "largest", "bias", "flips", "spread")
Errors = Mapping[str, Mapping[str, float]]
"""Score errors of a ladder, by row."""


def encoders_block(results: Sequence[Result], up: str) -> str:
    """The encoders with the ladder's errors, on each kind of hardware.

    If the ladder is newer or has ways to run the tower that the encoders lack, its rows without the steps.
    """
    ladders, encoders = newest(results, "encoder"), {one.slug: one for one in on_gpus(results, "encoders")}
    slugs = dict.fromkeys([*encoders, *ladders])
    return "\n\n".join(_block(encoders.get(slug), ladders.get(slug), up) for slug in slugs)


def ladder_block(results: Sequence[Result], up: str) -> str:
    """The ladder with all of its steps and its plot."""
    return "\n\n".join(_ladder_table(result, up) for result in newest(results, "encoder").values())


def ladder_page(content: Mapping[str, Any]) -> str:
    """The result file of the encoder ladder as Markdown: speed, score errors, limits, and its notes."""
    rows, base = content["ladder"], content["ladder"][0]["microseconds"] if content["ladder"] else 0.0
    speeds = [
        [
            row["name"],
            str(row["batch"]),
            f"{row['microseconds']:.1f}",
            f"{row['images_per_second']:,.0f}",
            f"{base / row['microseconds']:.2f}",
            f"{row['watts']:.0f}",
            f"{row['megahertz']:.0f}",
        ]
        for row in rows
    ]
    errors = [
        [error["name"], error["weights"], *(f"{error[name]:.4f}" for name in _ERROR_COLUMNS)]
        for error in content["errors"]
    ]
    columns = ["max" if name == "largest" else name for name in _ERROR_COLUMNS]
    rates = ", ".join(f"{name} {value:.0f}" for name, value in content["matmul_teraflops"].items())
    sections = [
        f"{content['device']}; {content['date']}",
        table(("encoder", "batch", "us/image", "img/s", "ratio", "W", "MHz"), speeds),
        table(["score error", "weights", *columns], errors),
        f"Matrix product 8192^3, TFLOP/s: {rates}",
    ]
    if starts := content.get("start_seconds"):
        lines = [[name, f"{seconds:.1f}"] for name, seconds in starts.items()]
        sections.append(table(["built and run once, in the order of one process", "seconds"], lines))
    if reasons := content.get("skipped"):
        sections.append(table(["not measured", "because"], [[name, why] for name, why in reasons.items()]))
    for title, notes in content.get("notes", {}).items():
        names = list(notes[0])
        sections += [title, table(names, [[str(note[name]) for name in names] for note in notes])]
    return "\n\n".join(sections) + "\n"


def _block(encoders: Result | None, ladder: Result | None, up: str) -> str:
    if encoders and (ladder is None or _replaces(encoders, ladder)):
        return _encoders_table(encoders, ladder, up)
    return _ladder_table(ladder, up, steps=False) if ladder else ""


def _replaces(encoders: Result, ladder: Result) -> bool:
    """Whether the encoders are as new as the ladder and have all of its ways to run our tower."""
    ours = {row.name for row in ladder.rows if not _is_step(row) and not row.name.startswith(_OPEN_CLIP)}
    return encoders.date >= ladder.date and ours <= {row.name for row in encoders.rows}


def _is_step(row: Row) -> bool:
    """Whether a row is a step towards another or was dropped: its name has a comma."""
    return "," in row.name


def _encoders_table(result: Result, ladder: Result | None, up: str) -> str:
    base = next((row for row in result.rows if row.name.startswith(_OPEN_CLIP)), None)
    errors = _errors(ladder) if ladder else {}
    limits = {_precision(row): row.limit for row in result.rows if row.limit}
    # Slowest first; the head, which is no encoder, last.
    rows = sorted(result.rows, key=lambda row: ("precision" not in row.detail, row.median))
    columns: dict[str, Cell] = {
        "images/s": median,
        "times open_clip": lambda row: _times(row, base if "precision" in row.detail else None),
        "of the chip": lambda row: percent(row.of_limit),
        "W": gpu("watts"),
        "MHz": gpu("sm_mhz"),
        _ERROR: lambda row: _error(errors.get(row.name)),
    }
    if not limits:
        del columns["of the chip"]
    heading = f"{result.content['settings'].get('encoder', '')} alone, {result.machine['hardware']}"
    below = [source(result, up), _chip(limits)]
    if errors and ladder:
        below.append(f"Score error: against float32 with the same weights, from {link(ladder, up)}.")
    sentences = " ".join(filter(None, below)) + skipped(result, up)
    return f"{rows_table(heading, columns, rows)}\n\n{sentences}"


def _ladder_table(result: Result, up: str, steps: bool = True) -> str:
    errors, base = _errors(result), result.row(_LADDER_BASE)
    rates = result.content["matmul_teraflops"]
    limits = {precision: 1e12 * rate / needed_flops(VIT_L_14) for precision, rate in rates.items()}
    columns: dict[str, Cell] = {
        "images/s": median,
        "times open_clip": lambda row: _times(row, base),
        "of the chip": lambda row: _of_chip(row, limits),
        _ERROR: lambda row: _error(errors.get(row.name)),
    }
    rows = [row for row in result.rows if steps or not _is_step(row)]
    shown = rows_table(f"ViT-L/14 alone, {result.machine['hardware']}", columns, rows)
    picture = plot(result, "encoder", "the encoder's ladder, in microseconds an image", up)
    below = f"{source(result, up)} {_chip(limits)} Score error: against float32 with the same weights."
    return f"{shown}\n\n{picture}\n\n{below}"


def _times(row: Row, base: Row | None) -> str:
    return f"{row.median / base.median:.2f}" if base else ""


def _of_chip(row: Row, limits: Mapping[str, float]) -> str:
    limit = limits.get(_precision(row))
    return percent(row.median / limit if limit else None)


def _precision(row: Row) -> str:
    """The precision of the matrix products that limit a row: bf16 has fp16's limit."""
    return "fp8" if "fp8" in row.name else "fp16"


def _chip(limits: Mapping[str, float]) -> str:
    listed = ", ".join(f"{precision} {limit:,.0f}" for precision, limit in sorted(limits.items()))
    rule = "The chip: images/s if there were only matrix products, at the rate that 8192^3 sustains"
    return f"{rule} ({listed}); bf16 is held to fp16's." if listed else ""


def _errors(ladder: Result) -> Errors:
    return {error["name"]: error for error in ladder.content["errors"] if error["weights"] == "random"}


def _error(error: Mapping[str, float] | None) -> str:
    return f"{error['mean']:.4f} / {error['p99']:.4f}" if error else ""
