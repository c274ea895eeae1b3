"""Counters of a run that add, and the verdict on what bounds it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from dali_aesthetic.overlap import StageTimes
from dali_aesthetic.types import ImageHeader, ShardReport, Status


@dataclass(slots=True)
class RunStats:
    """What a run has done so far. Times are seconds; rates count every sample, good or bad.

    `presets` counts by name how many scores each preset would keep, whatever the run's own threshold is.
    """

    num_samples: int = 0
    num_scored: int = 0
    num_kept: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    presets: Counter[str] = field(default_factory=Counter)
    reports: list[ShardReport] = field(default_factory=list)
    stages: list[StageTimes] = field(default_factory=list)
    waited_for_device: float = 0.0
    wrote: float = 0.0
    started_at: float = field(default_factory=time.perf_counter)
    ended_at: float | None = None

    def finish(self) -> None:
        """Stop the clock."""
        self.ended_at = time.perf_counter()

    def add(
        self, headers: tuple[ImageHeader, ...], num_kept: int, presets: Mapping[str, int] | None = None
    ) -> None:
        """Count one batch."""
        self.statuses.update(header.status.value for header in headers)
        self.num_samples += len(headers)
        self.num_scored = self.statuses[Status.OK.value]
        self.num_kept += num_kept
        self.presets.update(presets or {})

    @property
    def num_bad(self) -> int:
        return self.num_samples - self.num_scored

    @property
    def failed(self) -> list[ShardReport]:
        """Shards that were not committed."""
        return [report for report in self.reports if report.error]

    @property
    def damaged(self) -> list[ShardReport]:
        """Shards committed up to the place where reading them broke off."""
        return [report for report in self.reports if report.damage and not report.error]

    @property
    def progress(self) -> int:
        """A number that changes whenever any stage hands something on."""
        return sum(stage.items for stage in self.stages) + self.num_samples + len(self.reports)

    @property
    def seconds(self) -> float:
        """From the start of the loop to its end, or to now."""
        return (self.ended_at or time.perf_counter()) - self.started_at

    @property
    def samples_per_second(self) -> float:
        return self.num_samples / max(self.seconds, 1e-9)

    def work_times(self) -> dict[str, float]:
        """Seconds of own work by stage, its waiting taken off: storage, decode, GPU (or encoder), sink.

        Each stage's thread waits for input at the queue before it and for room at the one behind it; what
        remains is work. The device's work is what the last thread waits for, after the launch.
        """
        work: dict[str, float] = {}
        waited_for_input = 0.0
        for stage in self.stages:
            ended = stage.ended_at or time.perf_counter()
            own = (
                ended - stage.started_at - stage.blocked_on_full - waited_for_input if stage.started_at else 0
            )
            work[stage.name] = max(0.0, own)
            waited_for_input = stage.blocked_on_empty
        work["encode"] = work.get("encode", 0.0) + self.waited_for_device
        work["sink"] = self.wrote
        return work

    def bound_by(self) -> str:
        """The stage with most work of its own, or "" before there is anything to tell."""
        work = self.work_times()
        slowest = max(work, key=lambda name: work[name])
        return slowest if work[slowest] > 0 else ""
