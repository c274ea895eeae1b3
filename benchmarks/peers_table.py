"""Programs side by side: their speed in short, and in full what they ran with and did to what they kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.ladder_table import table
from benchmarks.result import Result, Row, format_number
from benchmarks.result_table import gates, hardware_line, number, on_gpus, skipped, source

OURS = "dali_aesthetic"
_SHORT = ("images/s", "ours is times", "mean score error", "writes")
_KEPT = ("kept images with other bytes", "renamed", "members lost")
_FULL = ("images", "settings", "score error, mean / p99", *_KEPT)


def peers_block(results: Sequence[Result], up: str = "") -> str:
    """Speed, error and output of each, on every GPU that was measured."""
    return "\n\n".join(_short(result, up) for result in on_gpus(results, "peers"))


def peers_full_block(results: Sequence[Result], up: str = "") -> str:
    """The same with all that is known of each."""
    return "\n\n".join(f"{_short(one, up)}\n\n{fidelity_table(one)}" for one in on_gpus(results, "peers"))


def fidelity_table(result: Result) -> str:
    """What each ran with, and what became of its scores and of the samples that it kept, if it wrote any."""
    return table(["", *_FULL], [_full_line(row) for row in result.rows])


def _short(result: Result, up: str) -> str:
    ours = result.row(OURS)
    rows = [
        [
            row.name,
            format_number(row.median),
            f"{ours.median / row.median:.1f}" if ours else "",
            number(row.detail.get("score_error_mean")),
            str(row.detail.get("writes", "")),
        ]
        for row in result.rows
    ]
    titles = [f"Side by side, {hardware_line(result)}", *_SHORT]
    return f"{table(titles, rows)}\n\n{source(result, up)}{skipped(result)}{gates(result.rows)}"


def _full_line(row: Row) -> list[str]:
    detail = row.detail
    errors = [number(detail[name]) for name in ("score_error_mean", "score_error_p99") if name in detail]
    kept = detail.get("kept_images_compared")
    return [
        row.name,
        number(detail.get("num_images")),
        _settings(detail.get("settings", {})),
        " / ".join(errors),
        *(_of(detail.get(name), kept) for name in ("kept_images_with_other_bytes", "kept_images_renamed")),
        number(detail.get("members_lost")),
    ]


def _of(count: int | None, kept: int | None) -> str:
    return "" if count is None else f"{count} of {kept}"


def _settings(settings: Mapping[str, Any]) -> str:
    return "; ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in settings.items())


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
