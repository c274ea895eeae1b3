"""How fast the run was over time and what bound it, from the lines a launcher appends to `timing.jsonl`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TIMING = "timing.jsonl"
MOST_BINS = 60


@dataclass(frozen=True, slots=True)
class Speed:
    """Throughput in time bins of `bin_seconds`, and each stage's share of the seconds worked.

    Several processes add up; runs of the same output (after a kill) follow each other.
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
    """What `timing.jsonl` tells; None where it is absent or tells nothing. Broken lines are passed over."""
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
    """Of one process. Seconds and work are since its start: the differences are each shard's."""
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
    """The spans from second 0 on, without the time in which no process ran; and the number of runs."""
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
    seconds = max(span.end for span in spans)
    if seconds <= 0:
        return None
    bins = min(MOST_BINS, len(spans))
    edges = np.linspace(0, seconds, bins + 1)
    samples_B = np.zeros(bins)
    work_B: list[dict[str, float]] = [defaultdict(float) for _ in range(bins)]
    total: dict[str, float] = defaultdict(float)
    for span in spans:
        share_B = _overlap(span, edges)
        samples_B += span.samples * share_B
        for stage, worked in span.work.items():
            total[stage] += worked
            for i in np.flatnonzero(share_B).tolist():
                work_B[i][stage] += worked * share_B[i]
    whole = sum(total.values()) or 1.0
    return Speed(
        bin_seconds=seconds / bins,
        rates=(samples_B / (seconds / bins)).tolist(),
        bound_by=[max(work, key=lambda stage: work[stage]) if work else "" for work in work_B],
        shares={stage: worked / whole for stage, worked in total.items()},
        seconds=seconds,
        num_samples=sum(span.samples for span in spans),
        num_runs=num_runs,
    )


def _overlap(span: _Span, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The share of the span that lies in each bin; adds up to 1."""
    if span.end <= span.start:
        share = np.zeros(len(edges) - 1)
        place = int(np.searchsorted(edges, span.end, side="left")) - 1
        share[min(max(place, 0), len(share) - 1)] = 1.0
        return share
    inside = np.minimum(edges[1:], span.end) - np.maximum(edges[:-1], span.start)
    shares: npt.NDArray[np.float64] = np.maximum(inside, 0.0) / (span.end - span.start)
    return shares
