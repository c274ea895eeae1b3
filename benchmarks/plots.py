"""Plots of results: small SVG files, reproducible byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import cases, end_to_end
from benchmarks.markdown import hardware_line, plot_file
from benchmarks.results import Result, Row, newest
from benchmarks.roofline import VIT_L_14, needed_bytes, needed_flops

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE = 1.11
"""The height of a line of text on the roofline's logarithmic axis, as a factor."""
OURS, OTHER, LIMIT = "#2a7f62", "#8a9ba8", "#c0392b"


def write_plots(results: Sequence[Result], folder: Path) -> list[Path]:
    """Draw every plot that the results have data for; returns the paths."""
    return [draw(folder / name, paint, height) for name, paint, height in _plots(results)]


def _plots(results: Sequence[Result]) -> Iterator[tuple[str, Callable[[Axes], None], float]]:
    """File name, painter and height in inches of each plot."""
    for result in end_to_end(results).values():
        height = _bars_height(len(cases(result)))
        yield plot_file(result, "throughput"), partial(throughput, result=result), height
    for result in newest(results, "stages").values():
        yield plot_file(result, "stages"), partial(stages, result=result), _bars_height(len(result.rows))
    for result in newest(results, "encoder").values():
        yield plot_file(result, "encoder"), partial(waterfall, ladder=result), 3.2
    for slug, result in newest(results, "ceilings").items():
        encoders = newest(results, "encoders").get(slug) or newest(results, "encoder").get(slug)
        paint = partial(roofline, ceilings=result, encoders=encoders)
        yield plot_file(result, "roofline"), paint, 3.6


def draw(path: Path, paint: Callable[[Axes], None], height: float = 3.2) -> Path:
    """Draw a plot into a file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "dali_aesthetic",
        "font.size": 8,
        "font.family": "sans-serif",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        paint(axes)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    return path


def throughput(axes: Axes, result: Result) -> None:
    """Whole runs as bars, the excess of the steady rate in a lighter colour, the encoder alone as a mark."""
    found = cases(result)
    for position, case in enumerate(found):
        whole, steady = case.whole.median, case.steady or case.whole.median
        axes.barh(position, whole, color=OURS)
        axes.barh(position, max(steady - whole, 0), left=whole, color=OURS, alpha=0.4)
        if case.alone:
            axes.plot([case.alone] * 2, [position - 0.4, position + 0.4], color=LIMIT, linewidth=1.2)
        text = f"{whole:,.0f}" + (f"; {steady:,.0f} steady" if case.steady else "")
        _write_beside(axes, max(whole, steady, case.alone or 0.0), position, text)
    _name_bars(axes, [f"{case.name}, {case.encoder}".removesuffix(", ") for case in found])
    axes.set_xlim(0, 1.35 * max(max(case.whole.median, case.alone or 0) for case in found))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("images/s end to end; light: without start and end; red: the encoder alone")
    _title(axes, result)


def stages(axes: Axes, result: Result) -> None:
    """Images/s of each stage by itself, with a line at the encoder's rate, which the others must reach."""
    rows = [row for row in result.rows if row.unit == "images/s"]
    encoder = result.row("encoder")
    line = encoder.median if encoder else 0.0
    for position, row in enumerate(rows):
        axes.barh(position, row.median, color=OURS if row.name == "encoder" else OTHER)
        _write_beside(axes, max(row.median, line), position, f"{row.median:,.0f}")
    if line:
        axes.axvline(line, color=LIMIT, linewidth=1, linestyle=":")
    _name_bars(axes, [row.name for row in rows])
    axes.set_xlim(0, 1.15 * max(row.median for row in rows))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("images/s of each stage by itself; dotted: the encoder")
    _title(axes, result)


def waterfall(axes: Axes, ladder: Result) -> None:
    """Microseconds an image from the slowest row to the fastest; the light part is what a step saves."""
    rows = sorted(ladder.rows, key=lambda row: row.median)
    times = [1e6 / row.median for row in rows]
    for position, (row, time) in enumerate(zip(rows, times, strict=True)):
        before = times[position - 1] if position else time
        axes.barh(position, time, color=OURS if "fused" in row.name else OTHER)
        axes.barh(position, before - time, left=time, color=LIMIT, alpha=0.25)
        _write_beside(axes, before, position, f"{time:.0f} us, {row.median:,.0f} images/s")
    _name_bars(axes, [row.name for row in rows])
    axes.set_xlim(0, 1.35 * max(times))
    axes.set_xlabel("microseconds an image, ViT-L/14 alone; light: what the row above takes longer")
    axes.set_title(f"{ladder.machine['hardware']}, {ladder.date}", fontsize=8)


def roofline(axes: Axes, ceilings: Result, encoders: Result | None) -> None:
    """The chip's limits as lines, the encoders as points; the title has the date of these if it differs."""
    from matplotlib.ticker import LogLocator

    copy = ceilings.row("copy within device memory")
    roofs = [row for row in ceilings.rows if row.name.startswith("GEMM") and " square " in row.name]
    measured = encoders.rows if encoders else ()
    points = [(row, _intensity(precision)) for row in measured if (precision := _precision(row.name))]
    right = 3 * max([intensity for _, intensity in points], default=1000.0)
    left = right / 30
    for row in roofs:
        _roof(axes, row, copy.median if copy else None, left, right)
    for intensity in dict.fromkeys(one for _, one in points):
        rows = [row for row, one in points if one == intensity]
        _points(axes, rows, intensity, [row.median for row in roofs])
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylabel="TFLOP/s")
    axes.set_xlabel("FLOP per byte moved where all but products and attention is fused")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:,.0f}")
        axis.set_minor_formatter("")
    other = encoders.date if encoders and encoders.date != ceilings.date else ""
    _title(axes, ceilings, f"; encoders: {other}" if other else "")


def _roof(axes: Axes, gemm: Row, bandwidth: float | None, left: float, right: float) -> None:
    label = " ".join(gemm.name.split()[:2])
    ridge = 1000 * gemm.median / bandwidth if bandwidth else left
    low = left * bandwidth / 1000 if bandwidth else gemm.median
    (line,) = axes.plot([left, ridge, right], [low, gemm.median, gemm.median], linewidth=1)
    text = f"{label}: {gemm.median:,.0f} TFLOP/s"
    axes.annotate(
        text, (right, gemm.median), (0, 3), textcoords="offset points", ha="right", color=line.get_color()
    )


def _points(axes: Axes, rows: Sequence[Row], intensity: float, roofs: Sequence[float]) -> None:
    """Encoders of one intensity are above each other: a name moves down until it has room."""
    flops = needed_flops(VIT_L_14)
    rates = {row.name: row.median * flops / 1e12 for row in rows}
    height = min((roof for roof in roofs if roof >= max(rates.values())), default=float("inf"))
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]):
        height = min(rate, height / _LINE)
        axes.plot(intensity, rate, "o", markersize=4, color=OURS if "fused" in name else OTHER)
        axes.annotate(
            f"{name}: {rate:,.0f}",
            (intensity, rate),
            (1.12 * intensity, height),
            va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": OTHER, "relpos": (0, 0.5)},
        )


def _intensity(precision: str) -> float:
    """Operations of an image per byte that it moves."""
    return needed_flops(VIT_L_14) / needed_bytes(VIT_L_14, precision)


def _precision(name: str) -> str | None:
    return next((word for word in ("fp8", "fp16", "bf16", "fp32") if word in name), None)


def _write_beside(axes: Axes, value: float, position: float, text: str) -> None:
    axes.annotate(text, (value, position), (3, 0), textcoords="offset points", va="center")


def _title(axes: Axes, result: Result, more: str = "") -> None:
    axes.set_title(f"{hardware_line(result)}, {result.date}{more}", fontsize=8)


def _bars_height(number: int) -> float:
    """Inches that the names of `number` bars need."""
    return 0.8 + 0.2 * max(number, 4)


def _name_bars(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), list(labels))
    axes.invert_yaxis()
