"""`timing.jsonl`: how long each shard took and what bound it. For people, not for comparing outputs.

A process's first line also has what came before: `start`, the seconds that it was there `before` and that
building its parts took, and `first`, the seconds from the start of the loop to the first batch of each stage,
scores and commit.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Mapping
from contextlib import closing, suppress
from pathlib import Path

from dali_aesthetic.stats import RunStats
from dali_aesthetic.types import ShardReport

TIMING = "timing.jsonl"


def timed(
    reports: Generator[ShardReport, None, None],
    output: str | Path,
    stats: RunStats,
    start: Mapping[str, float] | None = None,
) -> Generator[ShardReport, None, None]:
    """Passes `reports` on, appends one line for each committed shard, and closes `reports` at the end.

    `run` is when this process began, in seconds since 1970; `seconds` and `work` (by stage) count from then.
    A line that can't be written is left out: a full disk fails the run elsewhere.
    """
    begun = time.time()
    once = {"start": _rounded(start or {})}
    with closing(reports):
        for report in reports:
            if not report.error:
                first = once and {**once, "first": _rounded(stats.first_times())}
                _append(Path(output) / TIMING, _line(report, stats, begun) | first)
                once = {}
            yield report


def process_age() -> float:
    """Seconds since this process began; 0 where the system doesn't say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # since the system started
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def _line(report: ShardReport, stats: RunStats, begun: float) -> dict[str, object]:
    return {
        "run": round(begun, 3),
        "process": os.getpid(),
        "name": report.name,
        "samples": report.num_samples,
        "kept": report.num_kept,
        "seconds": round(stats.seconds, 3),
        "work": _rounded(stats.work_times()),
        "bound_by": stats.bound_by(),
    }


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


def _append(path: Path, line: dict[str, object]) -> None:
    """One write to a file opened for appending, so that lines of several processes don't mix."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return
    with os.fdopen(descriptor, "wb", buffering=0) as file, suppress(OSError):
        file.write((json.dumps(line) + "\n").encode())
