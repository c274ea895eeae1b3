"""The figures that the package plans with: `dali_aesthetic/rates.json`, made from committed results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.result import Result, Row
from benchmarks.tables import encoder_row, end_to_end

ROWS = ("end to end, 25% kept, steady", "end to end, 25% kept", "end to end")
"""End to end with the usual share kept, by the names that the themes give it; a long run is steady."""


def rates_json(results: Sequence[Result]) -> str:
    """Images/s of one GPU end to end, by kind of GPU, and where each figure is from."""
    found = {slug: _rate(result) for slug, result in end_to_end(results).items() if slug != "cpu"}
    gpus = {slug: rate for slug, rate in found.items() if rate}
    return json.dumps({"gpus": gpus}, indent=1) + "\n"


def _rate(result: Result) -> dict[str, Any] | None:
    row = next((row for name in ROWS if (row := result.row(name))), None)
    return None if row is None else _described(result, row)


def _described(result: Result, row: Row) -> dict[str, Any]:
    encoder = encoder_row(result)
    detail = encoder.detail if encoder else {}
    return {
        "images_per_second": row.median,
        "encoder": result.content["settings"]["encoder"],
        "backend": detail.get("backend"),
        "precision": detail.get("precision"),
        "hardware": result.machine["hardware"],
        "cpu_cores": result.machine["cpu_cores"],
        "date": result.date,
        "source": f"benchmarks/results/{result.file}",
    }
