"""What reading from stores costs, for a document in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.ladder_table import table
from benchmarks.result import Result, Row, format_number, newest
from benchmarks.result_table import FROM_DOCS, link, skipped


def stores_block(results: Sequence[Result]) -> str:
    """The ways to read, of the newest result."""
    return "\n\n".join(_ways(result) for result in newest(results, "stores").values())


def stores_loop_block(results: Sequence[Result]) -> str:
    """The whole host side, by where it reads."""
    return "\n\n".join(_loop(result) for result in newest(results, "stores").values())


def _ways(result: Result) -> str:
    rows = [_line(row) for row in result.rows if row.unit == "CPU s/GB"]
    first = rows[0][0].split(",")[0]
    titles = ["", "CPU s per GB", "least", f"times {first}", "cores for 6,600 samples/s of 100 KB"]
    load = result.machine.get("load_average_before", 0.0)
    below = f"From {link(result, up=FROM_DOCS)}, {result.date}, load average {load:g} before."
    return f"{table(titles, rows)}\n\n{below}{skipped(result)}"


def _loop(result: Result) -> str:
    rows = [_line(row) for row in result.rows if row.unit == "CPU us/sample"]
    size = result.content["bytes_per_sample_of_the_loop"] / 1000
    titles = [f"samples of {size:.0f} KB", "CPU us a sample", "least", "times a local disk"]
    return table([*titles, "cores for 6,600 samples/s"], rows)


def _line(row: Row) -> list[str]:
    figures = (row.median, row.low, row.detail["of_first"], row.detail["cores_at_target"])
    return [row.name, *map(format_number, figures)]
