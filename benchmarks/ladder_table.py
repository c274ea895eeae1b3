"""The tables of the encoder's ladder: speed, score errors, ceilings, and the notes kept with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ERROR_COLUMNS = ("mean", "p99", "largest", "bias", "flips", "spread")


def ladder_markdown(content: Mapping[str, Any]) -> str:
    """Everything that a ladder's result file holds, as Markdown."""
    sections = [
        f"{content['device']}; {content['date']}",
        _speeds(content["ladder"]),
        _errors(content["errors"]),
        _ceilings(content["matmul_teraflops"]),
    ]
    if starts := content.get("start_seconds"):
        rows = [[name, f"{seconds:.1f}"] for name, seconds in starts.items()]
        sections.append(table(["built and run once, in the order of one process", "seconds"], rows))
    if skipped := content.get("skipped"):
        sections.append(table(["not measured", "because"], [[name, why] for name, why in skipped.items()]))
    for title, rows in content.get("notes", {}).items():
        columns = list(rows[0])
        sections += [title, table(columns, [[str(row[column]) for column in columns] for row in rows])]
    return "\n\n".join(sections) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _speeds(rows: Sequence[Mapping[str, Any]]) -> str:
    base = rows[0]["microseconds"]
    columns = ("encoder", "batch", "us/image", "img/s", "ratio", "W", "MHz")
    return table(columns, [_speed(row, base) for row in rows])


def _speed(row: Mapping[str, Any], base: float) -> list[str]:
    return [
        row["name"],
        str(row["batch"]),
        f"{row['microseconds']:.1f}",
        f"{row['images_per_second']:,.0f}",
        f"{base / row['microseconds']:.2f}",
        f"{row['watts']:.0f}",
        f"{row['megahertz']:.0f}",
    ]


def _errors(errors: Sequence[Mapping[str, Any]]) -> str:
    columns = ["max" if name == "largest" else name for name in ERROR_COLUMNS]
    rows = [[e["name"], e["weights"], *(f"{e[name]:.4f}" for name in ERROR_COLUMNS)] for e in errors]
    return table(["score error", "weights", *columns], rows)


def _ceilings(tflops: Mapping[str, float]) -> str:
    rates = ", ".join(f"{name} {value:.0f}" for name, value in tflops.items())
    return f"Matrix product 8192^3, TFLOP/s: {rates}"
