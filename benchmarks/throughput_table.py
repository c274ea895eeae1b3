"""End to end, one line a case: the whole run, its steady part, and the encoder alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.ladder_table import table
from benchmarks.result import Result, Row, format_number, newest
from benchmarks.result_table import gates, hardware_line, number, percent, plot, source

ENCODER_ROWS = ("encoder only, same run", "encoder")
"""What end to end is compared with, by the names that the themes give it."""
_WHOLE, _STEADY = "end to end", ", steady"
_TITLES = ("encoder", "whole run, images/s", "steady", "encoder alone")
_SHARE = "of the encoder alone"


@dataclass(frozen=True, slots=True)
class Case:
    """What was kept and read by which encoder; rates are images/s, None where they weren't measured."""

    name: str
    encoder: str
    whole: Row
    steady: float | None
    alone: float | None

    @property
    def share(self) -> float | None:
        """Of the encoder alone: the steady rate's, without one the whole run's."""
        return (self.steady or self.whole.median) / self.alone if self.alone else None

    @property
    def seconds(self) -> float | None:
        """How long a whole run was."""
        samples = self.whole.detail.get("samples")
        return samples / self.whole.median if samples else None

    @property
    def edge_seconds(self) -> float | None:
        """What start and end cost beyond the same images at the steady rate."""
        if self.seconds is None or self.steady is None:
            return None
        return self.seconds - self.seconds * self.whole.median / self.steady


def end_to_end(results: Sequence[Result]) -> dict[str, Result]:
    """The newest result that holds end to end rows, by hardware."""
    # One that was cut off early has an encoder and no run.
    found = [result for result in results if any(row.name.startswith(_WHOLE) for row in result.rows)]
    return newest(found, "throughput") | newest(found, "end-to-end")


def encoder_row(result: Result) -> Row | None:
    """The encoder by itself in a result of the whole."""
    return next((row for name in ENCODER_ROWS if (row := result.row(name))), None)


def cases(result: Result) -> list[Case]:
    """Every case of a result, in its order; one that was measured whole and steady is one."""
    wholes = [row for row in result.rows if row.name.startswith(_WHOLE) and not row.name.endswith(_STEADY)]
    return [_case(result, row) for row in wholes]


def throughput_block(results: Sequence[Result], up: str = "") -> str:
    """The cases of every GPU that was measured."""
    found = [result for slug, result in end_to_end(results).items() if slug != "cpu"]
    return "\n\n".join(_throughput_table(result, up) for result in found)


def throughput_plot(results: Sequence[Result], up: str = "") -> str:
    """The same as pictures."""
    found = [result for slug, result in end_to_end(results).items() if slug != "cpu"]
    return "\n\n".join(plot(result, "throughput", "images/s end to end, by case", up) for result in found)


def _case(result: Result, row: Row) -> Case:
    usual = encoder_row(result)
    steady = result.row(f"{row.name}{_STEADY}")
    encoder = _encoder(row) or (_encoder(usual) if usual else "")
    name = row.name.removeprefix(_WHOLE).removeprefix(", ").removesuffix(f", {encoder}")
    alone = row.limit or (usual.median if usual else None)
    return Case(name or _WHOLE, encoder, row, steady.median if steady else None, alone)


def _encoder(row: Row) -> str:
    return " ".join(str(row.detail[name]) for name in ("backend", "precision") if name in row.detail)


def _throughput_table(result: Result, up: str) -> str:
    found = cases(result)
    model = result.content["settings"].get("encoder", "")
    first = f"{hardware_line(result)}" + (f", {model}" if model else "")
    share = f"steady, {_SHARE}" if any(case.steady for case in found) else _SHARE
    rows = table([first, *_TITLES, share], [_line(case) for case in found])
    return f"{rows}\n\n{source(result, up)}{_lengths(found)}{gates(result.rows)}"


def _line(case: Case) -> list[str]:
    rates = (case.whole.median, case.steady, case.alone)
    return [case.name, case.encoder, *map(number, rates), percent(case.share)]


def _lengths(found: Sequence[Case]) -> str:
    """How long the runs were, so that nobody compares whole rates of short and long ones."""
    seconds = [case.seconds for case in found if case.seconds]
    edges = [case.edge_seconds for case in found if case.edge_seconds]
    if not seconds:
        return ""
    samples = [case.whole.detail["samples"] for case in found if case.seconds]
    length = (
        f" A whole run had {_range(samples)} images and took {_range(seconds)} s, from the first read to the "
        "last commit"
    )
    cost = (
        f"; its start and end cost {_range(edges)} s of that, which steady rates leave out" if edges else ""
    )
    return f"{length}{cost}. Compare whole rates only of runs of one length."


def _range(values: Sequence[float]) -> str:
    ends = (min(values), max(values))
    low, high = (format_number(value) if value >= 100 else f"{value:.1f}" for value in ends)
    return low if low == high else f"{low} to {high}"
