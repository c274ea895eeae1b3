"""End-to-end results as cases: an input, a kept share and an encoder, by whole runs and by steady rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.datasets import title_of
from benchmarks.markdown import gates, hardware_line, number, percent, plot, source, table
from benchmarks.results import Result, Row, format_number, newest

ENCODER_ROW = "encoder only, same run"
WEBMIX, UNIFORM = title_of("webmix", 0), title_of("baseline", 512)
"""The images of the first rows, and those of rows that name none."""
_KEPT = "% kept"
_USUAL_SHARE = "25% kept"
_WHOLE, _STEADY = "end to end", ", steady"


@dataclass(frozen=True, slots=True)
class Case:
    """A case of a result. Rates are images/s, None if they weren't measured."""

    name: str
    encoder: str
    whole: Row
    steady: float | None
    alone: float | None

    @property
    def share(self) -> float | None:
        """The steady rate, or without one the whole run's, as a share of the encoder alone."""
        return (self.steady or self.whole.median) / self.alone if self.alone else None

    @property
    def seconds(self) -> float | None:
        """Seconds of a whole run."""
        samples = self.whole.detail.get("samples")
        return samples / self.whole.median if samples else None

    @property
    def edge_seconds(self) -> float | None:
        """Seconds that start and end cost: a whole run's beyond those of its images at the steady rate."""
        if self.seconds is None or self.steady is None:
            return None
        return self.seconds - self.seconds * self.whole.median / self.steady


def end_to_end(results: Sequence[Result]) -> dict[str, Result]:
    """The newest result with rows of runs by kind of hardware; one that was cut off early has none."""
    return newest(
        [one for one in results if any(row.name.startswith(_WHOLE) for row in one.rows)], "end-to-end"
    )


def encoder_row(result: Result) -> Row | None:
    """The usual encoder alone, measured in the same run."""
    return result.row(ENCODER_ROW)


def cases(result: Result) -> list[Case]:
    """All cases of a result, `WEBMIX` first; the whole and the steady row of a case are one case."""
    wholes = [row for row in result.rows if row.name.startswith(_WHOLE) and not row.name.endswith(_STEADY)]
    return sorted((_case(result, row) for row in wholes), key=lambda case: case.name != WEBMIX)


def throughput_block(results: Sequence[Result], up: str) -> str:
    """A table of the cases for every kind of GPU."""
    return "\n\n".join(_table(result, up) for result in _on_gpus(results))


def throughput_plots(results: Sequence[Result], up: str) -> str:
    """A plot of the cases for every kind of GPU."""
    return "\n\n".join(
        plot(result, "throughput", "images/s end to end, by case", up) for result in _on_gpus(results)
    )


def _on_gpus(results: Sequence[Result]) -> list[Result]:
    return [result for slug, result in end_to_end(results).items() if slug != "cpu"]


def _case(result: Result, row: Row) -> Case:
    usual = encoder_row(result)
    steady = result.row(f"{row.name}{_STEADY}")
    encoder = _encoder(row) or (_encoder(usual) if usual else "")
    last = row.name.rpartition(", ")[2]
    if encoder and last.endswith(encoder):  # with its model, if that is another one
        encoder = last
    name = row.name.removesuffix(f", {encoder}").removeprefix(_WHOLE).removeprefix(", ")
    alone = row.limit or (usual.median if usual else None)
    return Case(_of_images(name) or _WHOLE, encoder, row, steady.median if steady else None, alone)


def _of_images(name: str) -> str:
    """A case's name with its images, where it has only a kept share."""
    if name == _USUAL_SHARE:
        return UNIFORM
    return f"{UNIFORM}, {name}" if name.endswith(_KEPT) else name


def _encoder(row: Row) -> str:
    return " ".join(str(row.detail[name]) for name in ("backend", "precision") if name in row.detail)


def _table(result: Result, up: str) -> str:
    found = cases(result)
    model = result.content["settings"].get("encoder", "")
    first = f"{hardware_line(result)}" + (f", {model}" if model else "")
    share = "of the encoder alone"
    share = f"steady, {share}" if any(case.steady for case in found) else share
    titles = [first, "encoder", "whole run, images/s", "steady", "encoder alone", share]
    rows = table(titles, [_line(case) for case in found])
    return f"{rows}\n\n{source(result, up)}{_lengths(found)}{gates(result, up)}"


def _line(case: Case) -> list[str]:
    rates = (case.whole.median, case.steady, case.alone)
    return [case.name, case.encoder, *map(number, rates), percent(case.share)]


def _lengths(found: Sequence[Case]) -> str:
    """The length of the runs: whole rates of short and long runs can't be compared."""
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
