"""Made-up results in the format of the real ones, and settings for short runs on a CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.results import Result, read_result
from benchmarks.settings import Settings

MACHINES = {
    "h100": {"hardware": "H100 80GB HBM3", "cpu": "Xeon", "cpu_cores": 16, "packages": {"torch": "2.11.0"}},
    "cpu": {"hardware": "cpu", "cpu": "Some CPU", "cpu_cores": 2, "packages": {"torch": "2.11.0"}},
}


def row(name: str, median: float, unit: str = "images/s", **detail: Any) -> dict[str, Any]:
    """A row without spread."""
    plain = {"name": name, "unit": unit, "median": median, "min": median, "max": median, "repeats": 1}
    return plain | detail


def with_settings(found: Result, settings: dict[str, Any]) -> Result:
    """The same result, measured with these settings."""
    return replace(found, content={**found.content, "settings": settings})


def without(found: Result, row_name: str, fact: str) -> Result:
    """The same result without a row and a fact."""
    rows = [row for row in found.content["rows"] if row["name"] != row_name]
    content = {name: value for name, value in found.content.items() if name != fact} | {"rows": rows}
    return replace(found, content=content, rows=tuple(row for row in found.rows if row.name != row_name))


def result(
    folder: Path,
    theme: str,
    rows: list[dict[str, Any]],
    slug: str = "h100",
    date: str = "2026-01-01",
    **facts: str,
) -> Result:
    """Written to `folder` and read again."""
    content = {
        "theme": theme,
        "date": date,
        "machine": MACHINES[slug],
        "settings": {"encoder": "ViT-L-14"},
        "rows": rows,
        "skipped": [{"name": "nothing", "reason": "made up"}],
        **facts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{theme}_{slug}_{date}.json"
    path.write_text(json.dumps(content))
    return read_result(path)


def whole(
    folder: Path,
    end_to_end: float = 2500.0,
    webmix: float = 2000.0,
    ours: float = 4000.0,
    host_us: float = 100.0,
) -> list[Result]:
    """One result of each theme that the guard compares."""
    return [
        result(
            folder,
            "end-to-end",
            [
                row("encoder only, same run", 2600.0, backend="fused", precision="fp16"),
                row("end to end, 25% kept", end_to_end),
                row("end to end, webmix", webmix),
            ],
        ),
        result(
            folder,
            "peers",
            [
                row("dali_aesthetic", ours, writes="all", score_error_mean=0.001),
                row("webdataset + DataLoader + open_clip", 1000.0, writes="nothing", score_error_mean=0.002),
            ],
            images="webmix",
        ),
        result(folder, "host", [row("host loop, 25% kept", 9000.0, cpu_us_per_image=host_us)]),
    ]


def tiny_settings(folder: Path) -> Settings:
    """A tiny encoder over shards of twelve images."""
    return Settings(
        device="cpu", encoder="ViT-S-32-alt", quick=True, distinct=12, num_shards=2, batch_size=4, repeats=1,
        seconds=0.05, data=folder / "data", results=folder / "results",
    )  # fmt: skip
