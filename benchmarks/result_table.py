"""What every table of results shares: the words about a result, and its rows as they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.ladder_table import table
from benchmarks.result import Result, Row, format_number, newest

FROM_DOCS = "../"
"""How a document in a folder of its own reaches the repository's root."""


def on_gpus(results: Sequence[Result], theme: str) -> list[Result]:
    """The newest result of a theme on each kind of GPU."""
    return [result for slug, result in newest(results, theme).items() if slug != "cpu"]


def hardware_line(result: Result) -> str:
    """GPU or CPU, cores, and the libraries that decide the speed."""
    machine = result.machine
    cores = f", {machine['cpu_cores']} CPU cores" if machine.get("cpu_cores") else ""
    name = machine["cpu"] if result.slug == "cpu" else machine["hardware"]
    torch = machine.get("packages", {}).get("torch")
    return f"{name}{cores}" + (f", torch {torch}" if torch else "")


def link(result: Result, up: str = "") -> str:
    """To the result's page, for a document that is `up` from the root."""
    page_name = result.file.removesuffix(".json") + ".md"
    return f"[{page_name}]({up}benchmarks/results/{page_name})"


def source(result: Result, up: str = "") -> str:
    """The sentence below a table: where its figures are from."""
    return f"From {link(result, up)}, {result.date}."


def skipped(result: Result) -> str:
    """What was left out and why, as sentences that follow on others."""
    return "".join(f" {one['name']}: {one['reason']}." for one in result.skipped)


def plot(result: Result, name: str, what: str, up: str = "") -> str:
    """The picture `NAME_SLUG_DATE.svg` that was drawn from the result; `what` is for who can't see it."""
    return f"![{what}]({up}benchmarks/results/{plot_file(result, name)})"


def plot_file(result: Result, name: str) -> str:
    """How a plot of this result is called."""
    return f"{name}_{result.slug}_{result.date}.svg"


def percent(value: float | None, digits: int = 0) -> str:
    """A share; empty without one."""
    return "" if value is None else f"{100 * value:.{digits}f}%"


def number(value: float | None) -> str:
    """As results show numbers; empty without one."""
    return "" if value is None else format_number(value)


def gates(rows: Sequence[Row]) -> str:
    """What the gate said of fp8, once for all rows that it said the same of; empty where there was none."""
    said = sorted({str(row.detail["gate"]) for row in rows if "gate" in row.detail})
    return "".join(f" fp8 with random weights: gate {one}." for one in said)


def gpu(name: str) -> Callable[[Row], str]:
    """What was read off the GPU while the row ran: `watts`, `sm_mhz`, `jpeg_percent`."""
    return lambda row: number(row.detail.get("gpu", {}).get(name))


def _spread(row: Row) -> str:
    return f"{format_number(row.low)} .. {format_number(row.high)}"


COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "what": lambda row: row.name,
    "median": lambda row: format_number(row.median),
    "images/s": lambda row: format_number(row.median),
    "unit": lambda row: row.unit,
    "min .. max": _spread,
    "repeats": lambda row: str(row.repeats),
    "of the limit": lambda row: percent(row.of_limit, digits=1),
    "CPU us": lambda row: number(row.cpu_us),
    "CPU us an image": lambda row: number(row.cpu_us),
    "us an image": lambda row: number(row.detail.get("microseconds")),
    "bound, us": lambda row: number(row.detail.get("bound_microseconds")),
    "bound by": lambda row: str(row.detail.get("bound_by", "")),
    "W": gpu("watts"),
    "MHz": gpu("sm_mhz"),
    "JPEG %": gpu("jpeg_percent"),
    "JPEG engine, %": gpu("jpeg_percent"),
    "device memory, MiB": lambda row: number(row.detail.get("peak_device_mib")),
    "host memory, MiB": lambda row: number(row.detail.get("peak_host_mib")),
}
"""What a column of a table of rows can show, by its title."""
_PAGE = ("what", "median", "unit", "min .. max", "repeats", "of the limit", "CPU us", "W", "JPEG %")


def rows_table(rows: Sequence[Row], titles: Sequence[str] = _PAGE, first: str = "what") -> str:
    """Rows with the columns of these titles, the first one called `first`."""
    cells = [[COLUMNS[title](row) for title in titles] for row in rows]
    return table([first, *titles[1:]], cells)


def rows_block(result: Result, titles: Sequence[str], up: str = "") -> str:
    """A result's rows below its hardware, and where they are from."""
    return (
        f"{rows_table(result.rows, titles, hardware_line(result))}\n\n{source(result, up)}{skipped(result)}"
    )
