"""Counters of a run: they add up over workers and name the stage that bounds it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar

from dali_aesthetic.overlap import StageTimes
from dali_aesthetic.shards.oddities import WarningCounts
from dali_aesthetic.types import ImageHeader, ShardReport, Status

_Number = TypeVar("_Number", int, float)
_LATEST = 1000
_Name = TypeVar("_Name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counters of a worker at one moment: plain values that can be sent to another process, and added.

    `work` has seconds of own work by stage. `waits` has seconds at the queue behind a stage by (stage, side):
    its `consumer` waits for an item, the stage itself, the `producer`, for room. `seconds` is the time since
    the worker's start. `library_lines` were kept from standard error.
    """

    num_samples: int = 0
    num_kept: int = 0
    statuses: Mapping[str, int] = field(default_factory=dict)
    presets: Mapping[str, int] = field(default_factory=dict)
    removed: Mapping[tuple[str, str], int] = field(default_factory=dict)
    work: Mapping[str, float] = field(default_factory=dict)
    waits: Mapping[tuple[str, str], float] = field(default_factory=dict)
    seconds: float = 0.0
    library_lines: int = 0

    @property
    def num_scored(self) -> int:
        return self.statuses.get(Status.OK.value, 0)

    def __add__(self, other: Tally) -> Tally:
        """The sum, of seconds too, as for streams of a worker that follow one another."""
        added: dict[str, Any] = {}
        for name in (one.name for one in fields(self)):
            ours, theirs = getattr(self, name), getattr(other, name)
            added[name] = _sum(ours, theirs) if isinstance(ours, Mapping) else ours + theirs
        return Tally(**added)


class Reports:
    """The reports of a run's shards. All are counted; those of failed and damaged shards are kept.

    Of the others only the latest are kept, so that a run of a million shards takes no more memory than a
    small one. `committed` and `bytes_kept` are sums over the committed shards.
    """

    def __init__(self) -> None:
        self.committed = Tally()
        self.bytes_kept = 0
        self.warnings = WarningCounts()
        self._count = 0
        self._problems: list[ShardReport] = []
        self._latest: deque[tuple[int, ShardReport]] = deque(maxlen=_LATEST)

    def append(self, report: ShardReport) -> None:
        self._latest.append((self._count, report))
        self._count += 1
        self.warnings.add(report.source, report.warnings)
        if report.error or report.damage:
            self._problems.append(report)
        if not report.error:
            self.committed += tally_of(report)
            self.bytes_kept += report.bytes_kept

    def __iadd__(self, reports: Iterable[ShardReport]) -> Self:
        for report in reports:
            self.append(report)
        return self

    def __len__(self) -> int:
        """The number of all reports."""
        return self._count

    def __iter__(self) -> Iterator[ShardReport]:
        """The reports that are kept."""
        yield from list(self._problems)
        yield from [report for _, report in list(self._latest) if not (report.error or report.damage)]

    def since(self, count: int) -> list[tuple[int, ShardReport]]:
        """The reports after the first `count`, with their numbers, as far as they are among the latest."""
        return [(number, report) for number, report in list(self._latest) if number >= count]


@dataclass(slots=True)
class RunStats:
    """The counters of a run so far. Times are seconds; rates count every sample, good or bad.

    `presets` counts by name the scores that each preset would keep, whatever the run's own threshold is.
    `engine` has the time that decoding waited for a GPU's JPEG engine.
    `workers` has the latest tally of each worker by name where several processes share the run; `incidents`
    says which of them died and how. Libraries wrote `library_lines` that standard error doesn't show.
    """

    num_samples: int = 0
    num_scored: int = 0
    num_kept: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    presets: Counter[str] = field(default_factory=Counter)
    reports: Reports = field(default_factory=Reports)
    stages: list[StageTimes] = field(default_factory=list)
    engine: StageTimes | None = None
    workers: dict[str, Tally] = field(default_factory=dict)
    incidents: list[str] = field(default_factory=list)
    library_lines: int = 0
    waited_for_device: float = 0.0
    wrote: float = 0.0
    scored_first_at: float = 0.0
    committed_first_at: float = 0.0
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

    def add_wait(self, seconds: float) -> None:
        """Count the wait for a batch's scores."""
        self.waited_for_device += seconds
        self.scored_first_at = self.scored_first_at or time.perf_counter()

    def add_reports(self, reports: Sequence[ShardReport], seconds: float) -> None:
        """Count the shards that ended, if any, and the seconds of the sink."""
        self.wrote += seconds
        self.reports += reports
        if any(not report.error for report in reports):
            self.committed_first_at = self.committed_first_at or time.perf_counter()

    def tally(self) -> Tally:
        """The counters now, as plain values."""
        return Tally(
            num_samples=self.num_samples,
            num_kept=self.num_kept,
            statuses=dict(self.statuses),
            presets=dict(self.presets),
            work=self.work_times(),
            waits={(stage.name, "consumer"): stage.blocked_on_empty for stage in self.stages}
            | {(stage.name, "producer"): stage.blocked_on_full for stage in self.stages}
            | ({(self.engine.name, "consumer"): self.engine.blocked_on_empty} if self.engine else {}),
            seconds=self.seconds,
            library_lines=self.library_lines,
        )

    def set_worker(self, name: str, tally: Tally) -> None:
        """Sets all that the worker `name` has done so far; the totals become the sum over the workers."""
        self.workers[name] = tally
        total = sum(self.workers.values(), Tally())
        self.num_samples, self.num_kept = total.num_samples, total.num_kept
        self.statuses, self.presets = Counter(total.statuses), Counter(total.presets)
        self.library_lines = total.library_lines
        self.num_scored = self.statuses[Status.OK.value]

    @property
    def num_bad(self) -> int:
        return self.num_samples - self.num_scored - self.statuses[Status.FILTERED.value]

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
        """Seconds of own work by stage, without waits: storage, decode, encode, sink.

        A stage's thread waits for input at the queue before it and for room at the queue behind it; the rest
        is work. The device's work is the time that the last thread waits for it. Workers add up.
        """
        if self.workers:
            return dict(sum(self.workers.values(), Tally()).work)
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

    def first_times(self) -> dict[str, float]:
        """Seconds from the start of the loop to each stage's first batch, the first scores and first commit,
        as far as they have come.

        The difference to the stage before is its set-up on first use: DALI's memory pools and decoders,
        kernels that are loaded, buffers that are pinned.
        """
        at = {stage.name: stage.first_at for stage in self.stages}
        at |= {"scores": self.scored_first_at, "commit": self.committed_first_at}
        return {name: moment - self.started_at for name, moment in at.items() if moment}

    def bound_by(self) -> str:
        """What is short: the stage with most work of its own, of decoding what it waits for; "" before the
        first sample."""
        if not self.num_samples:  # the set-up of the decoder is no bound
            return ""
        total = sum(self.workers.values(), Tally()) if self.workers else self.tally()
        slowest = max(total.work, key=lambda name: total.work[name], default="")
        if slowest == "decode":
            waits = {name: each for (name, _), each in total.waits.items() if name.startswith("decode: ")}
            most = max(waits, key=lambda name: waits[name], default="")
            slowest = most if waits.get(most, 0.0) > total.work["decode"] / 2 else "decode: CPU cores"
        return slowest if any(total.work.values()) else ""


class StreamCounter:
    """Adds up the streams of shards that a worker works one after another."""

    def __init__(self, before: Tally | None = None) -> None:
        self._before = before or Tally()
        self._stats: RunStats | None = None

    def begin(self) -> RunStats:
        """The counters of a new stream."""
        self._stats = RunStats()
        return self._stats

    def end(self) -> None:
        """The stream has ended. No other thread may call `tally` meanwhile."""
        self._before, self._stats = self.tally(), None

    def tally(self) -> Tally:
        """All streams up to now."""
        return self._before if self._stats is None else self._before + self._stats.tally()


def tally_of(report: ShardReport) -> Tally:
    """The counters of a shard's report."""
    removed = {
        (part, how): count
        for part, *counts in report.removed
        for how, count in zip(("alone", "in_order"), counts, strict=True)
    }
    return Tally(
        num_samples=report.num_samples, num_kept=report.num_kept, statuses=report.statuses, removed=removed
    )


def _sum(one: Mapping[_Name, _Number], other: Mapping[_Name, _Number]) -> dict[_Name, _Number]:
    total = dict(one)
    for name, value in other.items():
        total[name] = total[name] + value if name in total else value
    return total
