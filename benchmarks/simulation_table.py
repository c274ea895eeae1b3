"""Simulated clusters: what share of its workers' rates each way to hand out shards keeps, by their number."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.ladder_table import table
from benchmarks.result import Result, Row, format_number
from benchmarks.result_table import on_gpus, percent, plot, source

_PLOT = "images/s of simulated clusters by their number of workers"


def simulation_block(results: Sequence[Result], up: str = "") -> str:
    """The newest simulation with the rate of each kind of GPU, and its plot."""
    found = on_gpus(results, "simulation")
    return "\n\n".join(
        f"{shares_table(result)}\n\n{result.content['note']}.\n\n{plot(result, 'simulation', _PLOT, up)}\n\n"
        f"{source(result, up)}"
        for result in found
    )


def shares_table(result: Result) -> str:
    """A line a case, a column a number of workers: of the sum of their rates, how much came out."""
    numbers = sorted({row.detail["workers"] for row in result.rows})
    cases = list(dict.fromkeys(row.detail["case"] for row in result.rows))
    by_place = {(row.detail["case"], row.detail["workers"]): row for row in result.rows}
    rows = [[case, *(_cell(by_place.get((case, number))) for number in numbers)] for case in cases]
    return table(["of all workers' rates", *(f"{number:,} workers" for number in numbers)], rows)


def _cell(row: Row | None) -> str:
    """The share, and million images a second."""
    return f"{percent(row.of_limit)} ({format_number(row.median / 1e6)} M/s)" if row else ""
