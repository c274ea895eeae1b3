"""Results as Markdown: one page a file, and the blocks that documents show."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks.cold_start_table import cold_start_block, pieces_table
from benchmarks.encoder_table import encoders_block, ladder_block
from benchmarks.ladder_table import ladder_markdown, table
from benchmarks.peers_table import OURS, fidelity_table, peers_block, peers_full_block
from benchmarks.result import Result, Row, format_number, newest
from benchmarks.result_table import (
    FROM_DOCS,
    hardware_line,
    link,
    number,
    on_gpus,
    plot,
    rows_block,
    rows_table,
    skipped,
    source,
)
from benchmarks.simulation_table import simulation_block
from benchmarks.stores_table import stores_block, stores_loop_block
from benchmarks.throughput_table import encoder_row, end_to_end, throughput_block, throughput_plot

__all__ = ["OURS", "blocks", "encoder_row", "end_to_end", "hardware_line", "page"]

_QUEUES = (
    "The steps that led to the present form, in single runs of ten seconds, whole with start and end;\n"
    "`steady` leaves out the first two shards and the last:"
)
_STAGES = ("what", "images/s", "min .. max", "CPU us an image", "W", "JPEG engine, %")
_CEILINGS = ("what", "median", "unit", "min .. max", "W", "MHz")
_ROOFLINE = "TFLOP/s of the encoders below what the chip sustains"
_KERNELS = ("what", "us an image", "bound, us", "of the limit", "bound by", "W", "MHz")
_GROWTH = ("what", "images/s", "CPU us an image", "W", "device memory, MiB", "host memory, MiB")


def page(result: Result) -> str:
    """A whole result file: what it was measured on, its rows, what was skipped and why."""
    if "ladder" in result.content:
        return ladder_markdown(result.content)
    sections = [f"# {result.theme}, {hardware_line(result)}, {result.date}"]
    if result.content.get("command"):
        sections.append(f"`{result.content['command']}`")
    if isinstance(result.content.get("note"), str):
        sections.append(result.content["note"])
    sections.append(rows_table(result.rows))
    if result.theme in _MORE:
        sections.append(_MORE[result.theme](result))
    sections += _gates(result.rows)
    if result.skipped:
        sections.append("\n".join(f"- {one['name']}: skipped, {one['reason']}" for one in result.skipped))
    return "\n\n".join(sections) + "\n"


def blocks(results: Sequence[Result]) -> dict[str, str]:
    """The documents' blocks by name; empty where nothing of the kind was measured on a GPU."""
    readme = {
        "throughput": throughput_block(results),
        "scaling": _limited_block(
            results, "scaling", "the same work for each GPU", "of one GPU times their number"
        ),
        "encoders": encoders_block(results),
        "peers": peers_block(results),
        "host": _host_block(results),
        "precision": _precision_block(results),
    }
    docs = {
        "feed": _feed_block(results, FROM_DOCS),
        "throughput-plot": throughput_plot(results, FROM_DOCS),
        "ladder": ladder_block(results, FROM_DOCS),
        "stages": _rows_blocks(results, "stages", _STAGES, "images/s of each stage"),
        "ceilings": _rows_blocks(results, "ceilings", _CEILINGS, _ROOFLINE, "roofline"),
        "kernels": _rows_blocks(results, "kernels", _KERNELS) or "Not measured yet.",
        "growth": _rows_blocks(results, "growth", _GROWTH),
        "cold-start": cold_start_block(results, FROM_DOCS),
        "peers-full": peers_full_block(results, FROM_DOCS),
        "simulation": simulation_block(results, FROM_DOCS),
        "stores": stores_block(results),
        "stores-loop": stores_loop_block(results),
    }
    return readme | docs


def _rows_blocks(
    results: Sequence[Result], theme: str, titles: Sequence[str], picture: str = "", name: str = ""
) -> str:
    """A theme's rows on each GPU, with its plot where it has a `picture`, called `name` or as the theme."""
    found = []
    for result in on_gpus(results, theme):
        found.append(rows_block(result, titles, FROM_DOCS))
        if picture:
            found.append(plot(result, name or theme, picture, FROM_DOCS))
    return "\n\n".join(found)


def _gates(rows: Sequence[Row]) -> list[str]:
    """What the gate said, with the rows that it said it of."""
    said: dict[str, list[str]] = {}
    for row in rows:
        if "gate" in row.detail:
            said.setdefault(str(row.detail["gate"]), []).append(row.name)
    return [f"{'; '.join(names)}: gate {gate}." for gate, names in said.items()]


def _feed_block(results: Sequence[Result], up: str) -> str:
    """The decoder beside a busy encoder, and what was found to starve it before it was measured so."""
    measured = [
        f"{_feed_rows(result)}\n\n{source(result, up)}{skipped(result)}"
        for result in on_gpus(results, "feed")
    ]
    before = _limited_block(results, "queues", "end to end, by encoder", "of the encoder alone", up)
    return "\n\n".join([*measured, *([_QUEUES, before] if before else [])])


def _feed_rows(result: Result) -> str:
    beside = ("encoder_beside", "encoder_alone")
    rows = [
        [row.name, format_number(row.median), *(number(row.detail.get(name)) for name in beside)]
        for row in result.rows
    ]
    titles = [hardware_line(result), "decoded images/s", "the encoder meanwhile", "the encoder alone"]
    return table(titles, rows)


def _limited_block(results: Sequence[Result], theme: str, what: str, limit: str, up: str = "") -> str:
    """The rows of the newest GPU results of a theme that have a limit, with their share of it."""
    return "\n\n".join(_limited_table(result, what, limit, up) for result in on_gpus(results, theme))


def _limited_table(result: Result, what: str, limit: str, up: str) -> str:
    rows = [
        [row.name, format_number(row.median), f"{100 * row.median / row.limit:.0f}%"]
        for row in result.rows
        if row.limit
    ]
    titles = [f"{hardware_line(result)}{_asked_for(result)}, {what}", "images/s", limit]
    return f"{table(titles, rows)}\n\n{source(result, up)}"


def _asked_for(result: Result) -> str:
    """The encoder that the whole result is about, where its backend wasn't left to the package."""
    settings = result.content["settings"]
    if settings.get("backend", "auto") == "auto":
        return ""
    return ", " + " ".join(settings[name] for name in ("encoder", "backend", "precision"))


def _host_block(results: Sequence[Result]) -> str:
    """The newest on each kind and number of cores: what GPU stands beside them changes nothing."""
    by_cores: dict[str, Result] = {}
    for result in sorted(newest(results, "host").values(), key=lambda result: result.date):
        by_cores[_cores(result)] = result
    return "\n\n".join(_host_table(result) for result in by_cores.values())


def _host_table(result: Result) -> str:
    rows = [[row.name, format_number(row.median), format_number(row.cpu_us or 0)] for row in result.rows]
    titles = [f"Host side alone, {_cores(result)}", "samples/s", "CPU us a sample"]
    return f"{table(titles, rows)}\n\n{source(result)}"


def _cores(result: Result) -> str:
    count = result.content.get("cores_used", result.machine.get("cpu_cores"))
    return f"{count} cores of {result.machine['cpu']}"


def _precision_block(results: Sequence[Result]) -> str:
    found = newest(results, "precision")
    rows = [line for result in found.values() for line in map(partial(_precision_line, result), result.rows)]
    titles = ["path", "hardware", "images", "error: mean", "p99", "largest", "changed decisions"]
    sources = ", ".join(f"{link(result)} ({result.date})" for result in found.values())
    return f"{table(titles, rows)}\n\nFrom {sources}." if found else ""


def _precision_line(result: Result, row: Row) -> list[str]:
    """Errors of the raw score, and the images that another choice is made of at any of the presets."""
    errors = (row.median, row.detail["p99_error"], row.detail["max_error"])
    images = row.detail["num_images"]
    flipped = sum(cut["flipped"] for cut in row.detail["flips"])
    changed = f"{flipped} of {images} x {len(row.detail['flips'])} cuts"
    hardware = "CPU" if result.slug == "cpu" else result.machine["hardware"]
    return [row.name, hardware, str(images), *(f"{error:.5f}" for error in errors), changed]


_MORE = {"feed": _feed_rows, "cold-start": pieces_table, "peers": fidelity_table}
"""What a theme's page shows besides its rows."""
