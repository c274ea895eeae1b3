"""Results as Markdown: one page a file, and the short tables that the README shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from benchmarks.ladder_table import ladder_markdown, table
from benchmarks.result import Result, Row, format_number, newest
from benchmarks.roofline import VIT_L_14, needed_flops

OURS = "dali_aesthetic"
OPEN_CLIP = "open_clip eager pure fp16"
_QUEUES = (
    "What each step gave, in single runs of ten seconds, whole with start and end; `steady` leaves out the "
    "first two\nshards and the last:"
)
ENCODER_ROWS = ("encoder only, same run", "encoder")
"""What end to end is compared with, by the names that the themes give it."""


def page(result: Result) -> str:
    """A whole result file: what it was measured on, its rows, what was skipped and why."""
    if "ladder" in result.content:
        return ladder_markdown(result.content)
    sections = [f"# {result.theme}, {hardware_line(result)}, {result.date}"]
    if result.content.get("command"):
        sections.append(f"`{result.content['command']}`")
    if isinstance(result.content.get("note"), str):
        sections.append(result.content["note"])
    sections.append(_rows_table(result.rows))
    if result.theme == "feed":
        sections.append(_feed_rows(result))
    sections += [f"{row.name}: gate {row.detail['gate']}." for row in result.rows if "gate" in row.detail]
    if result.skipped:
        sections.append("\n".join(f"- {one['name']}: skipped, {one['reason']}" for one in result.skipped))
    return "\n\n".join(sections) + "\n"


def hardware_line(result: Result) -> str:
    """GPU or CPU, cores, and the libraries that decide the speed."""
    machine = result.machine
    cores = f", {machine['cpu_cores']} CPU cores" if machine.get("cpu_cores") else ""
    name = machine["cpu"] if result.slug == "cpu" else machine["hardware"]
    torch = machine.get("packages", {}).get("torch")
    return f"{name}{cores}" + (f", torch {torch}" if torch else "")


def blocks(results: Sequence[Result]) -> dict[str, str]:
    """The README's blocks by name; empty where nothing of the kind was measured on a GPU."""
    return {
        "throughput": _throughput_block(results),
        "feed": _feed_block(results),
        "scaling": _limited_block(
            results, "scaling", "the same work for each GPU", "of one GPU times their number"
        ),
        "encoders": _encoders_block(results),
        "peers": _peers_block(results),
        "host": _host_block(results),
        "precision": _precision_block(results),
        "stores": _stores_block(results),
        "stores-loop": _stores_loop_block(results),
    }


def encoder_row(result: Result) -> Row | None:
    """The encoder by itself in a result of the whole."""
    return next((row for name in ENCODER_ROWS if (row := result.row(name))), None)


def end_to_end(results: Sequence[Result]) -> dict[str, Result]:
    """The newest result that holds end to end rows, by hardware."""
    return newest(results, "throughput") | newest(results, "end-to-end")


def _throughput_block(results: Sequence[Result]) -> str:
    found = [result for slug, result in end_to_end(results).items() if slug != "cpu"]
    return "\n\n".join(_throughput_table(result) for result in found)


def _throughput_table(result: Result) -> str:
    encoder = encoder_row(result)
    rows = [[row.name, format_number(row.median), _share(row, encoder)] for row in result.rows]
    titles = [f"{hardware_line(result)} ({_model(result)})", "images/s", "of the encoder alone"]
    gates = sorted({row.detail["gate"] for row in result.rows if "gate" in row.detail})
    gate = f" fp8 with random weights: gate {gates[0]}." if gates else ""
    return f"{table(titles, rows)}\n\nFrom {_link(result)}, {result.date}.{gate}"


def _feed_block(results: Sequence[Result]) -> str:
    """The decoder beside a busy encoder; before it was measured so, what was found to starve it."""
    found = [result for slug, result in newest(results, "feed").items() if slug != "cpu"]
    if not found:
        before = _limited_block(results, "queues", "end to end, by encoder", "of the encoder alone")
        return f"{_QUEUES}\n\n{before}" if before else ""
    return "\n\n".join(f"{_feed_rows(result)}\n\nFrom {_link(result)}, {result.date}." for result in found)


def _feed_rows(result: Result) -> str:
    rows = [
        [
            row.name,
            format_number(row.median),
            *(
                format_number(row.detail[name]) if name in row.detail else ""
                for name in ("encoder_beside", "encoder_alone")
            ),
        ]
        for row in result.rows
    ]
    titles = [hardware_line(result), "decoded images/s", "the encoder meanwhile", "the encoder alone"]
    return table(titles, rows)


def _limited_block(results: Sequence[Result], theme: str, what: str, limit: str) -> str:
    """The rows of the newest GPU results of a theme that have a limit, with their share of it."""
    found = [result for slug, result in newest(results, theme).items() if slug != "cpu"]
    return "\n\n".join(_limited_table(result, what, limit) for result in found)


def _limited_table(result: Result, what: str, limit: str) -> str:
    rows = [
        [row.name, format_number(row.median), f"{100 * row.median / row.limit:.0f}%"]
        for row in result.rows
        if row.limit
    ]
    titles = [f"{hardware_line(result)}, {what}", "images/s", limit]
    return f"{table(titles, rows)}\n\nFrom {_link(result)}, {result.date}."


def _share(row: Row, encoder: Row | None) -> str:
    """Of the encoder that was measured with the row, else of the usual one."""
    if not row.name.startswith("end to end"):
        return ""
    limit = row.limit or (encoder.median if encoder else None)
    return f"{100 * row.median / limit:.0f}%" if limit else ""


def _model(result: Result) -> str:
    """Encoder, backend and precision of the encoder's row."""
    detail = row.detail if (row := encoder_row(result)) else {}
    words = [result.content["settings"].get("encoder", ""), detail.get("backend"), detail.get("precision")]
    return " ".join(str(word) for word in words if word)


def _encoders_block(results: Sequence[Result]) -> str:
    found = newest(results, "encoder")
    return "\n\n".join(_ladder_summary(result) for result in found.values())


def _ladder_summary(result: Result) -> str:
    errors = {e["name"]: e for e in result.content["errors"] if e["weights"] == "random"}
    base = result.row(OPEN_CLIP)
    rows = [_ladder_line(result, row, base, errors.get(row.name)) for row in result.rows]
    titles = [f"ViT-L/14 alone, {result.machine['hardware']}", "images/s", "times open_clip"]
    titles += ["of the chip", "score error, mean / p99"]
    limits = ", ".join(f"{precision} {limit:,.0f}" for precision, limit in ladder_limits(result).items())
    plot = f"![the encoder's ladder](benchmarks/results/{result.file.replace('.json', '.svg')})"
    return (
        f"{table(titles, rows)}\n\n{plot}\n\n"
        f"From {_link(result)}, {result.date}. The chip: images/s if matrix products ran at the rate that "
        f"8192^3 sustains in the same run ({limits}). Score error: against float32 with the same weights."
    )


def _ladder_line(result: Result, row: Row, base: Row | None, error: Mapping[str, float] | None) -> list[str]:
    limit = ladder_limits(result).get("fp8" if "fp8" in row.name else "fp16")
    return [
        row.name,
        f"{row.median:,.0f}",
        f"{row.median / base.median:.2f}" if base else "",
        f"{100 * row.median / limit:.0f}%" if limit else "",
        f"{error['mean']:.4f} / {error['p99']:.4f}" if error else "",
    ]


def ladder_limits(result: Result) -> dict[str, float]:
    """Images/s that the measured rate of matrix products allows, by precision."""
    rates = result.content["matmul_teraflops"]
    return {precision: 1e12 * rate / needed_flops(VIT_L_14) for precision, rate in rates.items()}


def _peers_block(results: Sequence[Result]) -> str:
    found = [result for slug, result in newest(results, "peers").items() if slug != "cpu"]
    return "\n\n".join(_peers_table(result) for result in found)


def _peers_table(result: Result) -> str:
    ours = result.row(OURS)
    rows = [
        [
            row.name,
            format_number(row.median),
            f"{ours.median / row.median:.1f}" if ours else "",
            format_number(row.detail["score_error_mean"]) if "score_error_mean" in row.detail else "",
            str(row.detail.get("writes", "")),
        ]
        for row in result.rows
    ]
    titles = [
        f"Side by side, {hardware_line(result)}",
        "images/s",
        "ours is times",
        "mean score error",
        "writes",
    ]
    skipped = "".join(f" {one['name']}: {one['reason']}." for one in result.skipped)
    return f"{table(titles, rows)}\n\nFrom {_link(result)}, {result.date}.{skipped}"


def _host_block(results: Sequence[Result]) -> str:
    return "\n\n".join(_host_table(result) for result in newest(results, "host").values())


def _host_table(result: Result) -> str:
    rows = [[row.name, format_number(row.median), format_number(row.cpu_us or 0)] for row in result.rows]
    cores = result.content.get("cores_used", result.machine.get("cpu_cores"))
    titles = [f"Host side alone, {cores} cores of {result.machine['cpu']}", "samples/s", "CPU us a sample"]
    return f"{table(titles, rows)}\n\nFrom {_link(result)}, {result.date}."


def _precision_block(results: Sequence[Result]) -> str:
    found = newest(results, "precision")
    rows = [line for result in found.values() for line in map(partial(_precision_line, result), result.rows)]
    titles = ["path", "hardware", "images", "error: mean", "p99", "largest", "changed decisions"]
    sources = ", ".join(f"{_link(result)} ({result.date})" for result in found.values())
    return f"{table(titles, rows)}\n\nFrom {sources}." if found else ""


def _precision_line(result: Result, row: Row) -> list[str]:
    """Errors of the raw score, and the images that another choice is made of at any of the presets."""
    errors = (row.median, row.detail["p99_error"], row.detail["max_error"])
    images = row.detail["num_images"]
    flipped = sum(cut["flipped"] for cut in row.detail["flips"])
    changed = f"{flipped} of {images} x {len(row.detail['flips'])} cuts"
    hardware = "CPU" if result.slug == "cpu" else result.machine["hardware"]
    return [row.name, hardware, str(images), *(f"{error:.5f}" for error in errors), changed]


def _stores_block(results: Sequence[Result]) -> str:
    """The ways to read, of the newest result: for a document in a folder of its own."""
    found = list(newest(results, "stores").values())
    return "\n\n".join(_stores_table(result) for result in found)


def _stores_table(result: Result) -> str:
    rows = [_stores_line(row) for row in result.rows if row.unit == "CPU s/GB"]
    first = rows[0][0].split(",")[0]
    titles = ["", "CPU s per GB", "least", f"times {first}", "cores for 6,600 samples/s of 100 KB"]
    skipped = "".join(f" {one['name']}: {one['reason']}." for one in result.skipped)
    load = result.machine.get("load_average_before", 0.0)
    source = f"From {_link(result, up='../')}, {result.date}, load average {load:g} before."
    return f"{table(titles, rows)}\n\n{source}{skipped}"


def _stores_loop_block(results: Sequence[Result]) -> str:
    return "\n\n".join(_stores_loop_table(result) for result in newest(results, "stores").values())


def _stores_loop_table(result: Result) -> str:
    rows = [_stores_line(row) for row in result.rows if row.unit == "CPU us/sample"]
    size = result.content["bytes_per_sample_of_the_loop"] / 1000
    titles = [f"samples of {size:.0f} KB", "CPU us a sample", "least", "times a local disk"]
    return table([*titles, "cores for 6,600 samples/s"], rows)


def _stores_line(row: Row) -> list[str]:
    figures = (row.median, row.low, row.detail["of_first"], row.detail["cores_at_target"])
    return [row.name, *map(format_number, figures)]


def _link(result: Result, up: str = "") -> str:
    page_name = result.file.removesuffix(".json") + ".md"
    return f"[{page_name}]({up}benchmarks/results/{page_name})"


def _rows_table(rows: Sequence[Row]) -> str:
    titles = ("what", "median", "unit", "min .. max", "repeats", "of the limit", "CPU us", "W", "JPEG %")
    return table(titles, [_row_cells(row) for row in rows])


def _row_cells(row: Row) -> list[str]:
    gpu = row.detail.get("gpu", {})
    return [
        row.name,
        format_number(row.median),
        row.unit,
        f"{format_number(row.low)} .. {format_number(row.high)}",
        str(row.repeats),
        f"{100 * row.of_limit:.1f}%" if row.of_limit else "",
        format_number(row.cpu_us) if row.cpu_us else "",
        format_number(gpu["watts"]) if "watts" in gpu else "",
        format_number(gpu["jpeg_percent"]) if "jpeg_percent" in gpu else "",
    ]
