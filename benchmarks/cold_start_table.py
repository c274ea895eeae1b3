"""From the start of a process to its first committed scores, and the pieces of that."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.ladder_table import table
from benchmarks.result import Result, Row
from benchmarks.result_table import hardware_line, on_gpus, skipped, source


def cold_start_block(results: Sequence[Result], up: str = "") -> str:
    """Every start on every GPU that was measured."""
    found = on_gpus(results, "cold-start")
    return "\n\n".join(f"{pieces_table(one)}\n\n{source(one, up)}{skipped(one)}" for one in found)


def pieces_table(result: Result) -> str:
    """Seconds of whole starts, of the pieces one after the other, and from the loop's start to each `first`.

    Which pieces there are is the result's to say; `rest` is what they and the first commit leave.
    """
    building, first = _names(result, "start"), _names(result, "first")
    titles = [f"{hardware_line(result)}, seconds", "whole", "rest", *building]
    rows = [_line(row, building, first) for row in result.rows]
    return table([*titles, *(f"first {name}" for name in first)], rows)


def _names(result: Result, part: str) -> list[str]:
    """Of the pieces of any row, in the order in which rows have them."""
    pieces = [row.detail.get("pieces", {}).get(part, {}) for row in result.rows]
    return list(dict.fromkeys(name for names in pieces for name in names))


def _line(row: Row, building: Sequence[str], first: Sequence[str]) -> list[str]:
    pieces = row.detail.get("pieces", {})
    seconds = [pieces.get("start", {}).get(name) for name in building]
    seconds += [pieces.get("first", {}).get(name) for name in first]
    return [row.name, f"{row.median:.1f}", _seconds(_rest(row), digits=1), *map(_seconds, seconds)]


def _rest(row: Row) -> float | None:
    """The pieces are the last repeat's: from a median over several nothing can be taken away."""
    pieces = row.detail.get("pieces")
    if not pieces or row.repeats != 1:
        return None
    known: float = sum(pieces["start"].values()) + pieces["first"].get("commit", 0.0)
    return row.median - known


def _seconds(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
