"""Reading result files: every format that there is, as rows of one kind. Needs neither torch nor a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ROW_FIELDS = ("name", "unit", "median", "min", "max", "repeats", "limit", "of_limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a result. `low` and `high` are the spread of the repeats; `limit` has the same unit."""

    name: str
    median: float
    unit: str = "images/s"
    low: float
    high: float
    repeats: int = 1
    limit: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of_limit(self) -> float | None:
        """The share of the limit that was reached, where there is one."""
        return self.median / self.limit if self.limit else None

    @property
    def cpu_us(self) -> float | None:
        """Microseconds of CPU time an image, where that was measured."""
        value = self.detail.get("cpu_us_per_image")
        return float(value) if value else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A result file. `slug` is the kind of hardware in its name: `h100`, `cpu`."""

    theme: str
    slug: str
    date: str
    file: str
    machine: Mapping[str, Any]
    rows: Sequence[Row]
    skipped: Sequence[Mapping[str, str]]
    content: Mapping[str, Any]

    def row(self, name: str) -> Row | None:
        """The row of this name."""
        return next((row for row in self.rows if row.name == name), None)


def read_result(path: Path) -> Result:
    """Raises ValueError for a file that is no result of these benchmarks."""
    content = read_record(path)
    theme, slug, date = path.stem.split("_") if path.stem.count("_") == 2 else (path.stem, "", "")
    ladder = "ladder" in content
    return Result(
        theme=theme,
        slug=slug,
        date=date,
        file=path.name,
        machine=_ladder_machine(content) if ladder else content["machine"],
        rows=[_ladder_row(row) if ladder else _row(row) for row in content["ladder" if ladder else "rows"]],
        skipped=content.get("skipped", []),
        content=content,
    )


def read_record(path: Path) -> dict[str, Any]:
    """The content of a result file. Raises ValueError for a file that is none."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no result of these benchmarks: {error}") from error
    if not isinstance(content, dict) or not ("ladder" in content or {"rows", "theme"} <= content.keys()):
        raise ValueError(f"{path} is no result of these benchmarks")
    return content


def read_results(folder: Path) -> list[Result]:
    """All results in a folder, by name."""
    return [read_result(path) for path in sorted(folder.glob("*_*_*.json"))]


def latest(folder: Path, theme: str, hardware: str) -> Path | None:
    """The newest result of a theme on a kind of hardware (`h100`, `cpu`), by the date in its name."""
    found = sorted(folder.glob(f"{theme}_{hardware}_*.json"))
    return found[-1] if found else None


def newest(results: Sequence[Result], theme: str) -> dict[str, Result]:
    """The newest result of a theme by kind of hardware, GPUs first; one that was cut off before its first row
    is none."""
    found = [result for result in results if result.theme == theme and result.rows]
    found.sort(key=lambda result: result.date)
    by_slug = {result.slug: result for result in found}
    return dict(sorted(by_slug.items(), key=lambda item: (item[0] == "cpu", item[0])))


def format_number(value: float) -> str:
    """With thousands separators, three digits where it is small."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _row(row: Mapping[str, Any]) -> Row:
    return Row(
        name=row["name"],
        median=row["median"],
        unit=row["unit"],
        low=row["min"],
        high=row["max"],
        repeats=row["repeats"],
        limit=row.get("limit"),
        detail={name: value for name, value in row.items() if name not in _ROW_FIELDS},
    )


def _ladder_row(row: Mapping[str, Any]) -> Row:
    """A row of the encoder's ladder, which has the median of many batches and no spread."""
    rate = row["images_per_second"]
    detail = {name: value for name, value in row.items() if name not in ("name", "images_per_second")}
    return Row(name=row["name"], median=rate, low=rate, high=rate, detail=detail)


def _ladder_machine(content: Mapping[str, Any]) -> dict[str, Any]:
    name, driver, torch_version = (content["device"] + ", , ").split(", ")[:3]
    return {
        "hardware": name.removeprefix("NVIDIA "),
        "driver": driver.removeprefix("driver ") or None,
        "packages": {"torch": torch_version.removeprefix("torch ")} if torch_version else {},
    }
