"""The throughput of a run over time: one line of JSON for each committed shard, written and read.

The first line of a process also has `start`, the seconds before the loop (`before`, and by part built), and
`first`, the seconds from the start of the loop to the first batch of each stage, scores and commit. The file
informs people; two runs of the same output differ in it.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dali_aesthetic.layout import TIMING
from dali_aesthetic.stats import RunStats
from dali_aesthetic.types import ShardReport

MOST_BINS = 60
_SHORTEST = 1e-9


def timed(
    reports: Generator[ShardReport, None, None],
    output: str | Path,
    stats: RunStats,
    start: Mapping[str, float] | None = None,
) -> Generator[ShardReport, None, None]:
    """Yields `reports`, appends a line for each committed shard, and closes `reports` at the end.

    `run` is the start of this process in seconds since 1970; `seconds` and `work` (by stage) count from then.
    A line that can't be written is dropped: a full disk fails the run elsewhere.
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
    """Seconds since this process started; 0 if unknown."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # since the system started
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
    """Appends with one write, so that the lines of several processes don't mix."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return
    with os.fdopen(descriptor, "wb", buffering=0) as file, suppress(OSError):
        file.write((json.dumps(line) + "\n").encode())


@dataclass(frozen=True, slots=True)
class Speed:
    """Samples per second in bins of `bin_seconds`, and each stage's share of the busy seconds.

    Processes of one run add up; runs into the same output (after a kill) follow each other without gaps.
    """

    bin_seconds: float
    rates: list[float]
    bound_by: list[str]
    shares: dict[str, float]
    seconds: float
    num_samples: int
    num_runs: int


@dataclass(frozen=True, slots=True)
class _Span:
    """One committed shard: from the commit before it to its own."""

    start: float
    end: float
    samples: int
    work: dict[str, float]


def read_speed(output: Path) -> Speed | None:
    """The throughput of the runs into `output`; None without a usable line. Broken lines are skipped."""
    lines = _lines(output / TIMING)
    if not lines:
        return None
    processes: dict[tuple[float, Any], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        processes[float(line["run"]), line.get("process")].append(line)
    spans = sorted((s for p in processes.values() for s in _spans(p)), key=lambda span: span.start)
    return _speed(*_without_gaps(spans))


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        texts = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    found = []
    for text in texts:
        try:
            line = json.loads(text)
            numbers = (line["seconds"], line["samples"], line["run"], *line["work"].values())
            found += [line] if all(float(number) >= 0 for number in numbers) else []
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return found


def _spans(lines: Sequence[dict[str, Any]]) -> list[_Span]:
    """The spans of one process, whose seconds and work are counted from its start."""
    spans = []
    begun = float(lines[0]["run"])
    before, worked = 0.0, dict.fromkeys(lines[0]["work"], 0.0)
    for line in sorted(lines, key=lambda one: float(one["seconds"])):
        now = {str(stage): float(seconds) for stage, seconds in line["work"].items()}
        work = {stage: max(0.0, seconds - worked.get(stage, 0.0)) for stage, seconds in now.items()}
        end = float(line["seconds"])
        spans.append(_Span(begun + before, begun + end, int(line["samples"]), work))
        before, worked = end, now
    return spans


def _without_gaps(spans: Sequence[_Span]) -> tuple[list[_Span], int]:
    """The spans from second 0 on, without time in which no process ran, and the number of runs."""
    moved: list[_Span] = []
    gaps, reached, num_runs = spans[0].start, spans[0].start, 1
    for span in spans:
        if span.start > reached:
            gaps += span.start - reached
            num_runs += 1
        reached = max(reached, span.end)
        moved.append(_Span(span.start - gaps, span.end - gaps, span.samples, span.work))
    return moved, num_runs


def _speed(spans: Sequence[_Span], num_runs: int) -> Speed | None:
    ends_S = np.array([span.end for span in spans])
    seconds = float(ends_S.max())
    if seconds <= 0:
        return None
    bins = min(MOST_BINS, len(spans))
    stages = list(dict.fromkeys(stage for span in spans for stage in span.work))
    done_SK = np.array([[span.samples, *(span.work.get(stage, 0.0) for stage in stages)] for span in spans])
    lengths_S = np.maximum(ends_S - [span.start for span in spans], _SHORTEST)
    # The share of each span that lies before an edge, times what was done in the span.
    before_EK = [
        np.clip((edge - ends_S) / lengths_S + 1, 0, 1) @ done_SK for edge in np.linspace(0, seconds, bins + 1)
    ]
    before_EK[0] *= 0  # a span without a length, at 0, belongs to the first bin
    samples_B, *work_KB = np.diff(before_EK, axis=0).T
    num_samples, *work_K = done_SK.sum(0).tolist()
    whole = sum(work_K) or 1.0
    return Speed(
        bin_seconds=seconds / bins,
        rates=(samples_B / (seconds / bins)).tolist(),
        bound_by=[stages[i] for i in np.argmax(work_KB, axis=0).tolist()] if stages else [""] * bins,
        shares={stage: worked / whole for stage, worked in zip(stages, work_K, strict=True)},
        seconds=seconds,
        num_samples=int(num_samples),
        num_runs=num_runs,
    )
