"""Results as Markdown: a page for each file, and the documents' blocks, declared as columns by theme."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import UNIFORM, WEBMIX, cases, end_to_end, throughput_block, throughput_plots
from benchmarks.encoder_tables import encoders_block, ladder_block, ladder_page
from benchmarks.markdown import (
    FROM_DOCS,
    Columns,
    cpu_us,
    detail,
    gates,
    gpu,
    hardware_line,
    link,
    median,
    number,
    on_gpus,
    percent,
    plot,
    rows_table,
    skipped,
    source,
    spread,
    table,
)
from benchmarks.results import Result, Row, format_number, newest

OURS = "dali_aesthetic"
_QUEUES = (
    "The steps that led to the present form, in single runs of ten seconds, whole with start and end;\n"
    "`steady` leaves out the first two shards and the last:"
)


def on_all(results: Sequence[Result], theme: str) -> list[Result]:
    """The newest result of a theme on each kind of hardware."""
    return list(newest(results, theme).values())


def by_cores(results: Sequence[Result], theme: str) -> list[Result]:
    """The newest result on each kind and number of cores, whatever GPU the host has."""
    found = sorted(newest(results, theme).values(), key=lambda result: result.date)
    return list({_cores(result): result for result in found}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The rows of a theme in a document: a table for each result that `chosen` picks.

    `below` are the sentences below a table, `picture` is the name and the text of a plot, `more` comes last.
    `up` leads from the document to the root.
    """

    theme: str
    columns: Columns | Callable[[Result], Columns]
    heading: Callable[[Result], str] = hardware_line
    rows: Callable[[Result], Sequence[Row]] = lambda result: result.rows
    chosen: Callable[[Sequence[Result], str], list[Result]] = on_gpus
    below: Sequence[Callable[[Result, str], str]] = (source, skipped)
    picture: tuple[str, str] | None = None
    more: Callable[[Result], str] | None = None
    up: str = FROM_DOCS

    def table(self, result: Result) -> str:
        """The table alone."""
        columns = self.columns(result) if callable(self.columns) else self.columns
        return rows_table(self.heading(result), columns, self.rows(result))

    def text(self, results: Sequence[Result]) -> str:
        """Tables, sentences and plots; empty if the theme has no result."""
        return "\n\n".join(part for one in self.chosen(results, self.theme) for part in self._parts(one))

    def _parts(self, result: Result) -> list[str]:
        parts = [self.table(result), "".join(sentence(result, self.up) for sentence in self.below)]
        if self.picture:
            parts.append(plot(result, *self.picture, self.up))
        if self.more:
            parts.append(self.more(result))
        return [part for part in parts if part]


def _limited(result: Result) -> list[Row]:
    return [row for row in result.rows if row.limit]


def _of_limit(row: Row) -> str:
    return percent(row.of_limit)


def _scaling_heading(result: Result) -> str:
    """Names the encoder if the options did."""
    settings = result.content["settings"]
    given = settings.get("backend", "auto") != "auto"
    encoder = ", " + " ".join(settings[name] for name in ("encoder", "backend", "precision")) if given else ""
    return f"{hardware_line(result)}{encoder}, the same work for each GPU"


def _cores(result: Result) -> str:
    count = result.content.get("cores_used", result.machine.get("cpu_cores"))
    return f"{count} cores of {result.machine['cpu']}"


def _peers_columns(result: Result) -> Columns:
    ours = result.row(OURS)
    return {
        "images/s": median,
        "ours is times": lambda row: f"{ours.median / row.median:.1f}" if ours else "",
        "mean score error": detail("score_error_mean"),
        "writes": lambda row: str(row.detail.get("writes", "")),
    }


def _errors_of_peer(row: Row) -> str:
    names = ("score_error_mean", "score_error_p99")
    return " / ".join(number(row.detail[name]) for name in names if name in row.detail)


def _of_kept(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        count = row.detail.get(name)
        return "" if count is None else f"{count} of {row.detail.get('kept_images_compared')}"

    return cell


def _left_out(row: Row) -> str:
    """The images of a tar that got no score, by extension."""
    if not (found := row.detail.get("left_out")):
        return ""
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in found.items())
    return f"{kinds} of {row.detail['images_in_a_tar']}"


def _peer_settings(row: Row) -> str:
    settings: Mapping[str, Any] = row.detail.get("settings", {})
    return "; ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in settings.items())


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _start_columns(result: Result) -> Columns:
    """Whole starts, their pieces one after the other, and the time from the loop's start to each `first`."""
    pieces = {part: _piece_names(result, part) for part in ("start", "first")}
    return {
        "whole": lambda row: f"{row.median:.1f}",
        "rest": lambda row: _seconds(_rest(row), digits=1),
        **{name: _piece("start", name) for name in pieces["start"]},
        **{f"first {name}": _piece("first", name) for name in pieces["first"]},
    }


def _piece_names(result: Result, part: str) -> list[str]:
    """The pieces of all rows, in the order of the rows."""
    found = [row.detail.get("pieces", {}).get(part, {}) for row in result.rows]
    return list(dict.fromkeys(name for names in found for name in names))


def _piece(part: str, name: str) -> Callable[[Row], str]:
    return lambda row: _seconds(row.detail.get("pieces", {}).get(part, {}).get(name))


def _rest(row: Row) -> float | None:
    """Seconds beside the pieces and the first commit; None for medians, as pieces are of one repeat."""
    pieces = row.detail.get("pieces")
    if not pieces or row.repeats != 1:
        return None
    known: float = sum(pieces["start"].values()) + pieces["first"].get("commit", 0.0)
    return row.median - known


def _seconds(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _stores_columns(unit: str, relative: Callable[[Result], str], target: str) -> Callable[[Result], Columns]:
    return lambda result: {
        unit: median,
        "least": lambda row: format_number(row.low),
        f"times {relative(result)}": detail("of_first"),
        f"cores for {target}": detail("cores_at_target"),
    }


def _in_unit(unit: str) -> Callable[[Result], list[Row]]:
    return lambda result: [row for row in result.rows if row.unit == unit]


def _source_and_load(result: Result, up: str) -> str:
    load = result.machine.get("load_average_before", 0.0)
    return f"From {link(result, up)}, {result.date}, load average {load:g} before."


_PAGE: Columns = {
    "median": median,
    "unit": lambda row: row.unit,
    "min .. max": spread,
    "repeats": lambda row: str(row.repeats),
    "of the limit": lambda row: percent(row.of_limit, digits=1),
    "CPU us": cpu_us,
    "W": gpu("watts"),
    "JPEG %": gpu("jpeg_percent"),
}
_FULL_PEERS: Columns = {
    "scored": detail("num_images"),
    "left out of each tar": _left_out,
    "settings": _peer_settings,
    "score error, mean / p99": _errors_of_peer,
    "kept images with other bytes": _of_kept("kept_images_with_other_bytes"),
    "renamed": _of_kept("kept_images_renamed"),
    "members lost": detail("members_lost"),
}


def _speed_block(results: Sequence[Result], up: str) -> str:
    """The newest comparison with other programs, and runs over the other kind of images on the same GPU."""
    found = on_gpus(results, "peers")
    if not found:
        return ""
    peers = max(found, key=lambda result: result.date)
    runs = end_to_end(results).get(peers.slug)
    columns = _peers_columns(peers)
    shown = ("images/s", "ours is times", "writes")
    images = _images_of(peers)
    lines = [[row.name, images, *(columns[name](row) for name in shown)] for row in peers.rows]
    other = UNIFORM if images == WEBMIX else WEBMIX
    more = [
        [f"{OURS}, {case.encoder}", other, number(case.whole.median), "", ""]
        for case in (cases(runs) if runs else ())
        if case.name == other
    ]
    lines = [*lines, *more] if images == WEBMIX else [*more, *lines]
    below = [
        source(peers, up),
        *([source(runs, up)] if runs and more else []),
        *([f"[What `{WEBMIX}` is]({up}docs/benchmarks.md#images)."] if images == WEBMIX or more else []),
        gates(peers, up).strip(),
    ]
    return f"{table([hardware_line(peers), 'images', *shown], lines)}\n\n{' '.join(filter(None, below))}"


def _images_of(peers: Result) -> str:
    return str(peers.content.get("images", UNIFORM))


def _fidelity_table(result: Result, heading: str = "") -> str:
    """What each program scored, its settings and score errors, and its changes to the samples it kept."""
    return rows_table(heading, _FULL_PEERS, result.rows)


def _peers_heading(result: Result) -> str:
    return f"Side by side on {_images_of(result)}, {hardware_line(result)}"


_FEED = Block(
    theme="feed",
    columns={
        "decoded images/s": median,
        "the encoder meanwhile": detail("encoder_beside"),
        "the encoder alone": detail("encoder_alone"),
    },
)
_COLD_START = Block(
    theme="cold-start", columns=_start_columns, heading=lambda result: f"{hardware_line(result)}, seconds"
)
_BLOCKS: Mapping[str, Block] = {
    "scaling": Block(
        theme="scaling",
        columns={"images/s": median, "of one GPU times their number": _of_limit},
        heading=_scaling_heading,
        rows=_limited,
        below=(source,),
    ),
    "host": Block(
        theme="host",
        columns={"samples/s": median, "CPU us a sample": lambda row: format_number(row.cpu_us or 0)},
        heading=lambda result: f"Host side alone, {_cores(result)}",
        chosen=by_cores,
        below=(source,),
    ),
    "feed": _FEED,
    "queues": Block(
        theme="queues",
        columns={"images/s": median, "of the encoder alone": _of_limit},
        heading=lambda result: f"{hardware_line(result)}, end to end, by encoder",
        rows=_limited,
        below=(source,),
    ),
    "stages": Block(
        theme="stages",
        columns={
            "images/s": median,
            "min .. max": spread,
            "CPU us an image": cpu_us,
            "W": gpu("watts"),
            "JPEG engine, %": gpu("jpeg_percent"),
        },
        picture=("stages", "images/s of each stage"),
    ),
    "ceilings": Block(
        theme="ceilings",
        columns={
            "median": median,
            "unit": lambda row: row.unit,
            "min .. max": spread,
            "W": gpu("watts"),
            "MHz": gpu("sm_mhz"),
        },
        picture=("roofline", "TFLOP/s of the encoders below what the chip sustains"),
    ),
    "kernels": Block(
        theme="kernels",
        columns={
            "us an image": detail("microseconds"),
            "bound, us": detail("bound_microseconds"),
            "of the limit": lambda row: percent(row.of_limit, digits=1),
            "bound by": lambda row: str(row.detail.get("bound_by", "")),
            "W": gpu("watts"),
            "MHz": gpu("sm_mhz"),
        },
    ),
    "growth": Block(
        theme="growth",
        columns={
            "images/s": median,
            "CPU us an image": cpu_us,
            "W": gpu("watts"),
            "device memory, MiB": detail("peak_device_mib"),
            "host memory, MiB": detail("peak_host_mib"),
        },
    ),
    "cold-start": _COLD_START,
    "real-files": Block(
        theme="real-files",
        columns={
            "": median,
            "unit": lambda row: row.unit,
            "why": lambda row: str(row.detail.get("why", "")),
            "for example": lambda row: ", ".join(f"`{name}`" for name in row.detail.get("files", ())[:2]),
        },
        chosen=on_all,
    ),
    "peers-full": Block(
        theme="peers",
        columns=_peers_columns,
        heading=_peers_heading,
        below=(source, skipped, gates),
        more=_fidelity_table,
    ),
    "stores": Block(
        theme="stores",
        columns=_stores_columns(
            "CPU s per GB",
            lambda result: _in_unit("CPU s/GB")(result)[0].name.split(",")[0],
            "6,600 samples/s of 100 KB",
        ),
        heading=lambda result: "",
        rows=_in_unit("CPU s/GB"),
        chosen=on_all,
        below=(_source_and_load, skipped),
    ),
    "stores-loop": Block(
        theme="stores",
        columns=_stores_columns("CPU us a sample", lambda result: "a local disk", "6,600 samples/s"),
        heading=lambda one: f"samples of {one.content['bytes_per_sample_of_the_loop'] / 1000:.0f} KB",
        rows=_in_unit("CPU us/sample"),
        chosen=on_all,
        below=(),
    ),
}
"""The blocks that are tables of a theme's rows, by name."""
_MORE_ON_PAGES: Mapping[str, Callable[[Result], str]] = {
    "feed": _FEED.table,
    "cold-start": _COLD_START.table,
    "peers": lambda result: _fidelity_table(result, f"on {_images_of(result)}"),
}


def blocks(results: Sequence[Result]) -> dict[str, str]:
    """The documents' blocks by name. Most are empty without a result of a GPU."""
    found = {name: block.text(results) for name, block in _BLOCKS.items()}
    queues = found.pop("queues")
    found["feed"] = "\n\n".join(filter(None, [found["feed"], *([_QUEUES, queues] if queues else [])]))
    found["kernels"] = found["kernels"] or "Not measured yet."
    return found | {
        "speed": _speed_block(results, up=""),
        "throughput": throughput_block(results, FROM_DOCS),
        "throughput-plot": throughput_plots(results, FROM_DOCS),
        "encoders": encoders_block(results, FROM_DOCS),
        "ladder": ladder_block(results, FROM_DOCS),
        "precision": _precision_block(results),
    }


def page(result: Result) -> str:
    """A result file as Markdown: hardware, command, rows, and what was skipped and why."""
    if "ladder" in result.content:
        return ladder_page(result.content)
    sections = [f"# {result.theme}, {hardware_line(result)}, {result.date}"]
    if result.content.get("command"):
        sections.append(f"`{result.content['command']}`")
    if isinstance(result.content.get("note"), str):
        sections.append(result.content["note"])
    sections.append(rows_table("what", _PAGE, result.rows))
    if result.theme in _MORE_ON_PAGES:
        sections.append(_MORE_ON_PAGES[result.theme](result))
    sections += _gates_by_row(result.rows)
    if result.skipped:
        sections.append("\n".join(f"- {one['name']}: skipped, {one['reason']}" for one in result.skipped))
    return "\n\n".join(sections) + "\n"


def _gates_by_row(rows: Sequence[Row]) -> list[str]:
    """Every verdict of the gate, with the rows that it is about."""
    names: dict[str, list[str]] = {}
    for row in rows:
        if "gate" in row.detail:
            names.setdefault(str(row.detail["gate"]), []).append(row.name)
    return [f"{'; '.join(found)}: gate {verdict}." for verdict, found in names.items()]


def _precision_block(results: Sequence[Result]) -> str:
    """The rows of all kinds of hardware in one table."""
    found = on_all(results, "precision")
    lines = [_precision_line(result, row) for result in found for row in result.rows]
    titles = ["path", "hardware", "images", "error: mean", "p99", "largest", "changed decisions"]
    sources = ", ".join(f"{link(result, FROM_DOCS)} ({result.date})" for result in found)
    return f"{table(titles, lines)}\n\nFrom {sources}." if found else ""


def _precision_line(result: Result, row: Row) -> list[str]:
    """Errors of the raw score, and the images on another side of any preset's threshold."""
    errors = (row.median, row.detail["p99_error"], row.detail["max_error"])
    images = row.detail["num_images"]
    flipped = sum(cut["flipped"] for cut in row.detail["flips"])
    changed = f"{flipped} of {images} x {len(row.detail['flips'])} cuts"
    hardware = "CPU" if result.slug == "cpu" else result.machine["hardware"]
    return [row.name, hardware, str(images), *(f"{error:.5f}" for error in errors), changed]
