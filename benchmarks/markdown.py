"""Markdown of results: tables, cells of rows, links, and the sentences below a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.results import Result, Row, format_number, newest

FROM_DOCS = "../"
"""The path from a document in a folder of its own to the repository's root."""
Cell = Callable[[Row], str]
Columns = Mapping[str, Cell]
"""The columns of a table by title, without the first one, which has the names of the rows."""


def table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    head = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return "\n".join([*head, *("| " + " | ".join(line) + " |" for line in lines)])


def rows_table(heading: str, columns: Columns, rows: Sequence[Row]) -> str:
    """A table of rows, with `heading` above their names."""
    lines = [[row.name, *(cell(row) for cell in columns.values())] for row in rows]
    return table([heading, *columns], lines)


def percent(value: float | None, digits: int = 0) -> str:
    """A share in percent; empty for None."""
    return "" if value is None else f"{100 * value:.{digits}f}%"


def number(value: float | None) -> str:
    """A number as results show it; empty for None."""
    return "" if value is None else format_number(value)


def median(row: Row) -> str:
    """The row's value."""
    return format_number(row.median)


def spread(row: Row) -> str:
    """The smallest and the largest repeat."""
    return f"{format_number(row.low)} .. {format_number(row.high)}"


def cpu_us(row: Row) -> str:
    """CPU microseconds an image."""
    return number(row.cpu_us)


def detail(name: str) -> Cell:
    """A cell with a number of the row's detail."""
    return lambda row: number(row.detail.get(name))


def gpu(name: str) -> Cell:
    """A cell with a figure of the GPU during the row: `watts`, `sm_mhz`, `jpeg_percent`."""
    return lambda row: number(row.detail.get("gpu", {}).get(name))


def on_gpus(results: Sequence[Result], theme: str) -> list[Result]:
    """The newest result of a theme on each kind of GPU."""
    return [result for slug, result in newest(results, theme).items() if slug != "cpu"]


def hardware_line(result: Result) -> str:
    """The GPU or CPU, the number of cores, and torch's version."""
    machine = result.machine
    cores = f", {machine['cpu_cores']} CPU cores" if machine.get("cpu_cores") else ""
    name = machine["cpu"] if result.slug == "cpu" else machine["hardware"]
    torch = machine.get("packages", {}).get("torch")
    return f"{name}{cores}" + (f", torch {torch}" if torch else "")


def link(result: Result, up: str) -> str:
    """A link to the result's page from a document; `up` leads from the document to the root."""
    page_name = result.file.removesuffix(".json") + ".md"
    return f"[{page_name}]({up}benchmarks/results/{page_name})"


def source(result: Result, up: str) -> str:
    """The sentence with a table's source."""
    return f"From {link(result, up)}, {result.date}."


def skipped(result: Result, up: str) -> str:
    """A sentence for everything that was skipped, with the reason; follows on other sentences."""
    return "".join(f" {one['name']}: {one['reason']}." for one in result.skipped)


def gates(result: Result, up: str) -> str:
    """A sentence for every verdict of the gate on fp8; follows on other sentences."""
    verdicts = sorted({str(row.detail["gate"]) for row in result.rows if "gate" in row.detail})
    return "".join(f" fp8 with random weights: gate {one}." for one in verdicts)


def plot(result: Result, name: str, alt: str, up: str) -> str:
    """The image of a plot that was drawn from the result."""
    return f"![{alt}]({up}benchmarks/results/{plot_file(result, name)})"


def plot_file(result: Result, name: str) -> str:
    """The file name of a plot of the result."""
    return f"{name}_{result.slug}_{result.date}.svg"
