"""Result files: one JSON a theme, kind of hardware and day, written after every row; and how they are read.

`Record` writes, with `Measured` as its rows. `read_results` reads every format into `Result`
and `Row`, which tables, plots and the guard work with.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe, slug

_ROW_FIELDS = ("name", "unit", "median", "min", "max", "repeats", "limit", "of_limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A row to be written: the value of each repeat, and what else was read during them.

    `limit` is the most that the hardware allows, in the same unit and measured in the same run.
    """

    name: str
    values: Sequence[float]
    unit: str = "images/s"
    limit: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    gpu: Mapping[str, float] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """Median, spread and detail as JSON has them."""
        row: dict[str, Any] = {
            "name": self.name,
            "unit": self.unit,
            "median": _rounded(statistics.median(self.values)),
            "min": _rounded(min(self.values)),
            "max": _rounded(max(self.values)),
            "repeats": len(self.values),
        }
        if self.limit:
            row |= {"limit": _rounded(self.limit), "of_limit": round(row["median"] / self.limit, 4)}
        return {**row, **self.detail, "gpu": dict(self.gpu)} if self.gpu else {**row, **self.detail}


class Record:
    """The result file of a theme. Every change is written at once: a part that is cut off keeps its rows.

    With `resume` it continues today's file if settings and machine are the same. `date` names the file of a
    parent process and skips the comparison of machines: a child may see fewer cores or other packages.
    """

    def __init__(
        self,
        theme: str,
        folder: Path,
        device: torch.device,
        settings: Mapping[str, Any],
        resume: bool = False,
        date: str = "",
    ) -> None:
        self.theme, self.date = theme, date or time.strftime("%Y-%m-%d")
        self.path = folder / f"{theme}_{slug(device)}_{self.date}.json"
        found = json.loads(self.path.read_text()) if resume and self.path.exists() else {}
        machine = describe(device)
        same_machine = bool(date) or _same(found.get("machine", machine), machine)
        if found.get("settings") == dict(settings) and same_machine:
            self._content: dict[str, Any] = found
            return
        self._content = {
            "theme": theme,
            "date": self.date,
            "command": typed_command(),
            "machine": machine,
            "settings": dict(settings),
            "rows": [],
            "skipped": [],
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows so far."""
        return list(self._content["rows"])

    def row(self, name: str) -> dict[str, Any] | None:
        """The row of this name as JSON has it; None without one."""
        return next((row for row in self._content["rows"] if row["name"] == name), None)

    def has(self, name: str) -> bool:
        """Whether a row of this name was measured or skipped, in this process or in the one it resumes."""
        return any(one["name"] == name for one in [*self._content["rows"], *self._content["skipped"]])

    def get(self, name: str) -> Any:
        """The fact that `note` stored under this name; None without one."""
        return self._content.get(name)

    def add(self, measured: Measured) -> None:
        """Append a row, in place of any of the same name, and write the file."""
        row = measured.as_row()
        self._drop(measured.name)
        self._content["rows"].append(row)
        self._write()
        low, high = format_number(row["min"]), format_number(row["max"])
        share = f"  {100 * row['of_limit']:.1f}% of the limit" if "of_limit" in row else ""
        value = format_number(row["median"])
        print(f"  {row['name']:<44} {value:>10} {row['unit']}  ({low} .. {high}){share}", flush=True)

    def set_limit(self, name: str, limit: float) -> None:
        """Set the limit of a row, if there is such a row: some limits are measured after it."""
        for row in self._content["rows"]:
            if row["name"] == name:
                row |= {"limit": _rounded(limit), "of_limit": round(row["median"] / limit, 4)}
        self._write()

    def skip(self, name: str, reason: str) -> None:
        """Record that a row could not be measured, and why."""
        self._drop(name)
        self._content["skipped"].append({"name": name, "reason": reason})
        self._write()
        print(f"  {name:<44} skipped: {reason}", flush=True)

    def note(self, name: str, value: Any) -> None:
        """Store a fact about the whole run beside the rows."""
        self._content[name] = value
        self._write()

    def reload(self) -> None:
        """Read the file again after another process has written to it."""
        if self.path.exists():
            self._content = json.loads(self.path.read_text())

    def _drop(self, name: str) -> None:
        for kind in ("rows", "skipped"):
            self._content[kind] = [one for one in self._content[kind] if one["name"] != name]

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        temporary.write_text(json.dumps(self._content, indent=1) + "\n")
        temporary.replace(self.path)


def _same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Equal but for the load: rows of other machines or versions don't belong into one file."""
    return all(before.get(name) == now[name] for name in now.keys() - {"load_average_before"})


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def typed_command() -> str:
    """The command line without its folders, which say nothing about the result."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word in ("--results", "--data"):
            next(words, None)
        else:
            kept.append(word)
    return " ".join(["python -m benchmarks", *kept])


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row that was read. `low` and `high` are the spread of the repeats; `limit` has the same unit."""

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
        """Share of the limit; None without a limit."""
        return self.median / self.limit if self.limit else None

    @property
    def cpu_us(self) -> float | None:
        """CPU microseconds an image; None where they weren't measured."""
        value = self.detail.get("cpu_us_per_image")
        return float(value) if value else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A result file that was read. `slug` is the kind of hardware in its name: `h100`, `cpu`."""

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
    """Read a result file. Raises ValueError for a file that is none."""
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
    """All results in a folder, sorted by file name."""
    return [read_result(path) for path in sorted(folder.glob("*_*_*.json"))]


def newest(results: Sequence[Result], theme: str) -> dict[str, Result]:
    """The newest result of a theme by kind of hardware, GPUs first. A result without rows doesn't count."""
    found = [result for result in results if result.theme == theme and result.rows]
    found.sort(key=lambda result: result.date)
    by_slug = {result.slug: result for result in found}
    return dict(sorted(by_slug.items(), key=lambda item: (item[0] == "cpu", item[0])))


def format_number(value: float) -> str:
    """With thousands separators; three digits below 100."""
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
    """A row of the encoder ladder: the median of many batches, without a spread."""
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
