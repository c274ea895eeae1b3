"""What the workers of a cluster note for one another and for the driver; it lives in an actor of its own.

Ray gives a task whose actor died to another one, as often as it takes. What the board remembers makes that
safe: which shards of the task are done, and which ones a worker was at when it died.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dali_aesthetic.launch.node.crew import MOST_DEATHS
from dali_aesthetic.stats import Tally
from dali_aesthetic.types import Shard, ShardReport


@dataclass(frozen=True, slots=True)
class Duty:
    """What there is to do of a task: `fresh` shards in one stream, each of the `suspects`, over which a
    worker may have died, in one of its own. `reports` are of those that are done or given up."""

    fresh: tuple[Shard, ...]
    suspects: tuple[Shard, ...]
    reports: tuple[ShardReport, ...]


@dataclass(frozen=True, slots=True)
class News:
    """For the driver: the workers' counters by name, deaths, and an error that no worker would fare better
    with."""

    workers: dict[str, Tally] = field(default_factory=dict)
    incidents: tuple[str, ...] = ()
    fatal: Exception | None = None


class Board:
    """Every method is short; Ray runs one at a time."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}
        self._reports: dict[str, ShardReport] = {}
        self._workers: dict[str, Tally] = {}
        self._incidents: list[str] = []
        self._last_words = ""
        self._fatal: Exception | None = None

    def duty(self, shards: Sequence[Shard]) -> Duty:
        """Sorts a task's shards by what is known of them; that it is begun again means that a worker died."""
        open_ones = [s for s in shards if s.name not in self._reports and self._begun.get(s.name, 0)]
        if open_ones:
            why, self._last_words = self._last_words or "was lost", ""
            self._incidents.append(f"a worker {why}; it was at {', '.join(s.name for s in open_ones[:3])}")
            for shard in open_ones:
                self._give_up(shard, why)
        suspects = tuple(shard for shard in open_ones if shard.name not in self._reports)
        known = tuple(self._reports[shard.name] for shard in shards if shard.name in self._reports)
        fresh = tuple(s for s in shards if s.name not in self._reports and s not in open_ones)
        return Duty(fresh=fresh, suspects=suspects, reports=known)

    def counted(self, worker: str) -> Tally:
        """What was done under this name by a worker that died: the next one on its GPU goes on from there."""
        return self._workers.get(worker, Tally())

    def begin(self, name: str) -> None:
        """A worker takes the shard."""
        self._begun[name] = self._begun.get(name, 0) + 1

    def done(self, report: ShardReport, worker: str, tally: Tally) -> None:
        """The shard is committed, or given up by the worker itself."""
        self._reports[report.name] = report
        self._workers[worker] = tally

    def count(self, worker: str, tally: Tally) -> None:
        """All that the worker has done so far."""
        self._workers[worker] = tally

    def ends(self, why: str) -> None:
        """A worker is about to end its process, to be started anew."""
        self._last_words = why

    def stop(self, error: Exception) -> None:
        """A worker met what all would meet: the run is to end with it."""
        self._fatal = self._fatal or error

    def news(self) -> News:
        """As of now."""
        return News(dict(self._workers), tuple(self._incidents), self._fatal)

    def _give_up(self, shard: Shard, why: str) -> None:
        deaths = self._begun[shard.name]
        if deaths >= MOST_DEATHS:
            error = f"a worker died over it {deaths} times; the last one {why}"
            self._reports[shard.name] = ShardReport(name=shard.name, source=shard.source, error=error)
