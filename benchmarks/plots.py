"""Plots of results, as small SVG files whose bytes depend on the numbers alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.result import Result, Row, newest
from benchmarks.roofline import VIT_L_14, needed_bytes, needed_flops
from benchmarks.tables import end_to_end, hardware_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, OTHER, LIMIT = "#2a7f62", "#8a9ba8", "#c0392b"


def write_plots(results: Sequence[Result], folder: Path) -> list[Path]:
    """Every plot that the results have data for; the files written."""
    written = []
    for slug, result in end_to_end(results).items():
        stages = newest(results, "stages").get(slug)
        path = folder / f"throughput_{slug}_{result.date}.svg"
        written.append(draw(path, partial(throughput, result=result, stages=stages)))
    for slug, result in newest(results, "encoder").items():
        path = folder / f"encoder_{slug}_{result.date}.svg"
        written.append(draw(path, partial(waterfall, ladder=result)))
    for slug, result in newest(results, "ceilings").items():
        encoders = [
            found[slug] for theme in ("encoder", "encoders") if slug in (found := newest(results, theme))
        ]
        path = folder / f"roofline_{slug}_{result.date}.svg"
        written.append(draw(path, partial(roofline, ceilings=result, encoders=encoders)))
    for slug, result in newest(results, "simulation").items():
        path = folder / f"simulation_{slug}_{result.date}.svg"
        written.append(draw(path, partial(scaling, simulation=result)))
    return written


def draw(path: Path, paint: Callable[[Axes], None], height: float = 3.2) -> Path:
    """One plot to a file."""
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


def throughput(axes: Axes, result: Result, stages: Result | None) -> None:
    """Images/s by stage and end to end, as bars."""
    rows = [*(stages.rows if stages else []), *result.rows]
    rows = [row for row in rows if row.unit == "images/s"]
    colours = [OURS if row.name.startswith("end to end") else OTHER for row in rows]
    _bars(axes, [row.name for row in rows], [row.median for row in rows], colours)
    axes.set_xlabel(f"images/s, {hardware_line(result)}, {result.date}")


def waterfall(axes: Axes, ladder: Result) -> None:
    """Microseconds an image from the slowest row to the fastest, each bar what a step takes off."""
    rows = sorted(ladder.rows, key=lambda row: row.median)
    times = [1e6 / row.median for row in rows]
    for position, (row, time) in enumerate(zip(rows, times, strict=True)):
        before = times[position - 1] if position else time
        axes.barh(position, time, color=OURS if "fused" in row.name else OTHER)
        axes.barh(position, before - time, left=time, color=LIMIT, alpha=0.25)
        axes.text(before, position, f" {time:.0f} us, {row.median:,.0f} images/s", va="center")
    _name_bars(axes, [row.name for row in rows])
    axes.set_xlim(0, 1.35 * max(times))
    axes.set_xlabel(f"microseconds an image, ViT-L/14 alone, {ladder.machine['hardware']}, {ladder.date}")


def roofline(axes: Axes, ceilings: Result, encoders: Sequence[Result]) -> None:
    """The chip's limits as lines, the encoders measured on it as points."""
    copy = ceilings.row("copy within device memory")
    bandwidth = copy.median if copy else None
    for row in ceilings.rows:
        if row.name.startswith("GEMM") and " square " in row.name:
            _roof(axes, row, bandwidth)
    for result in encoders:
        for row in result.rows:
            _point(axes, row)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that has to be moved", ylabel="TFLOP/s")
    axes.set_title(f"{hardware_line(ceilings)}, {ceilings.date}", fontsize=8)
    axes.legend(fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def scaling(axes: Axes, simulation: Result) -> None:
    """Simulated images/s against the number of workers, a line for each case, with what is ideal."""
    cases = dict.fromkeys(row.detail["case"] for row in simulation.rows)
    for case in cases:
        rows = [row for row in simulation.rows if row.detail["case"] == case]
        workers = [row.detail["workers"] for row in rows]
        axes.plot(workers, [row.median for row in rows], "o-", markersize=2, linewidth=1, label=case)
    axes.plot(
        workers, [row.limit or 0.0 for row in rows], "k:", linewidth=1, label="every worker at its full rate"
    )
    axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="images/s")
    axes.set_title(textwrap.fill(f"simulated: {simulation.content['note']}", 130), fontsize=6)
    axes.legend(fontsize=6, frameon=False)


def _roof(axes: Axes, gemm: Row, bandwidth: float | None) -> None:
    label = " ".join(gemm.name.split()[:2])
    if bandwidth is None:
        axes.axhline(gemm.median, label=label, linewidth=1)
        return
    ridge = 1000 * gemm.median / bandwidth
    axes.plot([1, ridge, 10 * ridge], [bandwidth / 1000, gemm.median, gemm.median], label=label, linewidth=1)


def _point(axes: Axes, row: Row) -> None:
    precision = _precision(row.name)
    if precision is None:
        return
    flops = needed_flops(VIT_L_14)
    axes.plot(
        flops / needed_bytes(VIT_L_14, precision),
        row.median * flops / 1e12,
        "o",
        markersize=3,
        label=row.name,
    )


def _precision(name: str) -> str | None:
    return next((word for word in ("fp8", "fp16", "bf16", "fp32") if word in name), None)


def _bars(axes: Axes, labels: Sequence[str], values: Sequence[float], colours: Sequence[str]) -> None:
    positions: Any = range(len(values))
    axes.barh(positions, list(values), color=list(colours))
    for position, value in enumerate(values):
        axes.text(value, position, f" {value:,.0f}", va="center")
    _name_bars(axes, labels)
    axes.set_xlim(0, 1.15 * max(values))


def _name_bars(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), list(labels))
    axes.invert_yaxis()
