"""The encoder alone in every way to run it, and the ladder of its steps with their score errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.ladder_table import table
from benchmarks.result import Result, Row, newest
from benchmarks.result_table import gpu, link, on_gpus, percent, plot, skipped, source
from benchmarks.roofline import VIT_L_14, needed_flops

LADDER_BASE = "open_clip eager pure fp16"
"""All of open_clip's tower in fp16, its fastest way; the other one keeps LayerNorm in float32."""
_BASE = "open_clip eager"
_TITLES = ("images/s", "times open_clip", "of the chip")
_ERRORS = "score error, mean / p99"


def encoders_block(results: Sequence[Result], up: str = "") -> str:
    """Encoders with the ladder's errors; where it is newer or has ways that they lack the ladder's own ways,
    without the steps towards them."""
    ladders, encoders = newest(results, "encoder"), {one.slug: one for one in on_gpus(results, "encoders")}
    slugs = dict.fromkeys([*encoders, *ladders])
    return "\n\n".join(_block(encoders.get(slug), ladders.get(slug), up) for slug in slugs)


def ladder_block(results: Sequence[Result], up: str = "") -> str:
    """The ladder: what each step gave, with its plot."""
    return "\n\n".join(_ladder_table(result, up) for result in newest(results, "encoder").values())


def ladder_limits(result: Result) -> dict[str, float]:
    """Images/s that the measured rate of matrix products allows, by precision."""
    rates = result.content["matmul_teraflops"]
    return {precision: 1e12 * rate / needed_flops(VIT_L_14) for precision, rate in rates.items()}


def _block(encoders: Result | None, ladder: Result | None, up: str) -> str:
    if encoders and (ladder is None or _replaces(encoders, ladder)):
        return _encoders_table(encoders, ladder, up)
    return _ladder_table(ladder, up, steps=False) if ladder else ""


def _replaces(encoders: Result, ladder: Result) -> bool:
    """Not older, and with every way to run our own tower."""
    ours = {row.name for row in ladder.rows if not _is_step(row) and not row.name.startswith(_BASE)}
    return encoders.date >= ladder.date and ours <= {row.name for row in encoders.rows}


def _is_step(row: Row) -> bool:
    """Towards a way to run the tower, or one that was dropped: its name has a comma."""
    return "," in row.name


def _encoders_table(result: Result, ladder: Result | None, up: str) -> str:
    base = next((row for row in result.rows if row.name.startswith(_BASE)), None)
    errors = _errors(ladder) if ladder else {}
    # Slowest first; the head, which is no encoder, last.
    rows = sorted(result.rows, key=lambda row: ("precision" not in row.detail, row.median))
    lines = [_encoders_line(row, base, errors) for row in rows]
    model = result.content["settings"].get("encoder", "")
    titles = [f"{model} alone, {result.machine['hardware']}", *_TITLES, "W", "MHz", _ERRORS]
    limits = {_precision(row): row.limit for row in rows if row.limit}
    if not limits:  # measured without the chip's: nothing to say of it
        at = titles.index(_TITLES[-1])
        titles, lines = [*titles[:at], *titles[at + 1 :]], [[*line[:at], *line[at + 1 :]] for line in lines]
    below = [source(result, up), _chip(limits)]
    if errors and ladder:
        below.append(f"Score error: against float32 with the same weights, from {link(ladder, up)}.")
    return f"{table(titles, lines)}\n\n{' '.join(filter(None, below))}{skipped(result)}"


def _encoders_line(row: Row, base: Row | None, errors: Mapping[str, Mapping[str, float]]) -> list[str]:
    of_base = row.median / base.median if base and "precision" in row.detail else None
    return [
        row.name,
        f"{row.median:,.0f}",
        f"{of_base:.2f}" if of_base else "",
        percent(row.of_limit),
        gpu("watts")(row),
        gpu("sm_mhz")(row),
        _error(errors.get(row.name)),
    ]


def _ladder_table(result: Result, up: str, steps: bool = True) -> str:
    errors, base, limits = _errors(result), result.row(LADDER_BASE), ladder_limits(result)
    rows = [row for row in result.rows if steps or not _is_step(row)]
    lines = [_ladder_line(row, base, limits, errors.get(row.name)) for row in rows]
    titles = [f"ViT-L/14 alone, {result.machine['hardware']}", *_TITLES, _ERRORS]
    picture = plot(result, "encoder", "the encoder's ladder, in microseconds an image", up)
    below = f"{source(result, up)} {_chip(limits)} Score error: against float32 with the same weights."
    return f"{table(titles, lines)}\n\n{picture}\n\n{below}"


def _ladder_line(
    row: Row, base: Row | None, limits: Mapping[str, float], error: Mapping[str, float] | None
) -> list[str]:
    limit = limits.get(_precision(row))
    return [
        row.name,
        f"{row.median:,.0f}",
        f"{row.median / base.median:.2f}" if base else "",
        percent(row.median / limit if limit else None),
        _error(error),
    ]


def _precision(row: Row) -> str:
    """Of the matrix products that limit it: bf16 has fp16's."""
    return "fp8" if "fp8" in row.name else "fp16"


def _chip(limits: Mapping[str, float]) -> str:
    said = ", ".join(f"{precision} {limit:,.0f}" for precision, limit in sorted(limits.items()))
    rule = "The chip: images/s if there were only matrix products, at the rate that 8192^3 sustains"
    return f"{rule} ({said}); bf16 is held to fp16's." if said else ""


def _errors(ladder: Result) -> dict[str, Mapping[str, float]]:
    return {error["name"]: error for error in ladder.content["errors"] if error["weights"] == "random"}


def _error(error: Mapping[str, float] | None) -> str:
    return f"{error['mean']:.4f} / {error['p99']:.4f}" if error else ""
