"""Result files: what was measured, on what, how often, with what spread. Written after every row."""

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
from benchmarks.result import format_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One line of a result: the value of each repeat, and what else was seen meanwhile.

    `limit` is the most the hardware allows in the same unit, where that was measured in the same run.
    """

    name: str
    values: Sequence[float]
    unit: str = "images/s"
    limit: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    gpu: Mapping[str, float] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """Median, spread and detail, ready for JSON."""
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
    """A result file of one theme; `add` and `skip` write it at once, so that a part cut short leaves rows.

    With `resume` it goes on with today's file of the same settings and machine, where there is one. `date` is
    that of the file of the process that asked for this one, which may have more cores or other packages.
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
        """The row of this name."""
        return next((row for row in self._content["rows"] if row["name"] == name), None)

    def has(self, name: str) -> bool:
        """Whether this was measured, or skipped, already: of a record that is not resumed nothing was."""
        return any(one["name"] == name for one in [*self._content["rows"], *self._content["skipped"]])

    def get(self, name: str) -> Any:
        """What `note` put beside the rows; None without."""
        return self._content.get(name)

    def add(self, measured: Measured) -> None:
        """Append a row, replacing one of the same name, and write the file."""
        row = measured.as_row()
        self._drop(measured.name)
        self._content["rows"].append(row)
        self._write()
        low, high = format_number(row["min"]), format_number(row["max"])
        share = f"  {100 * row['of_limit']:.1f}% of the limit" if "of_limit" in row else ""
        value = format_number(row["median"])
        print(f"  {row['name']:<44} {value:>10} {row['unit']}  ({low} .. {high}){share}", flush=True)

    def set_limit(self, name: str, limit: float) -> None:
        """Give a row that is there, if it is, the limit that was found afterwards."""
        for row in self._content["rows"]:
            if row["name"] == name:
                row |= {"limit": _rounded(limit), "of_limit": round(row["median"] / limit, 4)}
        self._write()

    def skip(self, name: str, reason: str) -> None:
        """Note what could not be measured, and why."""
        self._drop(name)
        self._content["skipped"].append({"name": name, "reason": reason})
        self._write()
        print(f"  {name:<44} skipped: {reason}", flush=True)

    def note(self, name: str, value: Any) -> None:
        """Put one more fact about the whole run beside the rows."""
        self._content[name] = value
        self._write()

    def reload(self) -> None:
        """Take over what another process has written to the file."""
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
    """Rows of another machine, or of other versions, must not stand beside these as if of one run."""
    return all(before.get(name) == now[name] for name in now.keys() - {"load_average_before"})


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def typed_command() -> str:
    """As typed, without the folders it was given: they say nothing about the result."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word in ("--results", "--data"):
            next(words, None)
        else:
            kept.append(word)
    return " ".join(["python -m benchmarks", *kept])
