"""The state of a cluster run, in an actor of its own: the workers write it, the driver reads it.

Ray gives a task whose actor died to another one, as often as it takes. The state makes that safe: it knows
which shards of the task are done, and which ones a worker had open when it died.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dali_aesthetic.launch.work import given_up
from dali_aesthetic.stats import Tally
from dali_aesthetic.types import Shard, ShardReport


@dataclass(frozen=True, slots=True)
class TaskState:
    """The shards of a task: `fresh` ones for one stream; `suspects`, over which a worker may have died, for a
    stream each; and the `reports` of those that are done or given up."""

    fresh: tuple[Shard, ...]
    suspects: tuple[Shard, ...]
    reports: tuple[ShardReport, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """For the driver: the counters of each worker by name, deaths, and an error that every worker would
    meet."""

    workers: dict[str, Tally] = field(default_factory=dict)
    incidents: tuple[str, ...] = ()
    fatal: Exception | None = None


class ClusterState:
    """Its methods are short; Ray runs one at a time."""

    def __init__(self) -> None:
        self._num_begun: dict[str, int] = {}
        self._reports: dict[str, ShardReport] = {}
        self._workers: dict[str, Tally] = {}
        self._incidents: list[str] = []
        self._reason = ""
        self._fatal: Exception | None = None

    def begin_task(self, shards: Sequence[Shard]) -> TaskState:
        """Sorts a task's shards by what is known of them. One that is begun again has lost its worker."""
        open_ones = [s for s in shards if s.name not in self._reports and self._num_begun.get(s.name, 0)]
        if open_ones:
            why, self._reason = self._reason or "was lost", ""
            self._incidents.append(f"a worker {why}; it was at {', '.join(s.name for s in open_ones[:3])}")
            for shard in open_ones:
                if report := given_up(shard, self._num_begun[shard.name], why):
                    self._reports[shard.name] = report
        suspects = tuple(shard for shard in open_ones if shard.name not in self._reports)
        known = tuple(self._reports[shard.name] for shard in shards if shard.name in self._reports)
        fresh = tuple(s for s in shards if s.name not in self._reports and s not in open_ones)
        return TaskState(fresh=fresh, suspects=suspects, reports=known)

    def worker_tally(self, worker: str) -> Tally:
        """The counters of a worker that died under this name: the next one on its GPU goes on from there."""
        return self._workers.get(worker, Tally())

    def begin_shard(self, name: str) -> None:
        self._num_begun[name] = self._num_begun.get(name, 0) + 1

    def add_report(self, report: ShardReport, worker: str, tally: Tally) -> None:
        """The shard is committed, or given up by the worker itself."""
        self._reports[report.name] = report
        self._workers[worker] = tally

    def set_tally(self, worker: str, tally: Tally) -> None:
        """The counters of the worker since its start."""
        self._workers[worker] = tally

    def end_worker(self, why: str) -> None:
        """A worker is about to end its process, to be started anew."""
        self._reason = why

    def fail_run(self, error: Exception) -> None:
        """A worker met an error that all would meet. The first one is kept."""
        self._fatal = self._fatal or error

    def progress(self) -> Progress:
        return Progress(dict(self._workers), tuple(self._incidents), self._fatal)
