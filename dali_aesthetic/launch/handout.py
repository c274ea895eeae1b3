"""Which worker does which shard: handed out one by one as workers ask, and again where a worker died.

A worker reads ahead, so several shards are open in it when it dies, and which of them did it can't be told.
Each of them becomes a suspect and is done again alone, in a stream of its own. A shard that was there
`MOST_DEATHS` times is given up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dali_aesthetic.types import Shard, ShardReport

MOST_DEATHS = 3


class Handout:
    """Shards still to do, those open in each worker, and the suspects."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._fresh: Iterator[Shard] = iter(shards)
        self._next: Shard | None = next(self._fresh, None)
        self._suspects: list[tuple[Shard, str]] = []
        self._deaths: dict[str, int] = {}
        self._open: dict[str, dict[str, Shard]] = {}
        self._alone: set[str] = set()

    @property
    def finished(self) -> bool:
        """Whether every shard was reported or given up."""
        return not (self._next or self._suspects or any(self._open.values()))

    def first(self, worker: str, *, is_only: bool = True) -> Shard | None:
        """The first shard of a stream; None where there is none now (more may come back from the dead).

        A suspect goes to another worker than the one that died over it, unless that `is_only`: it may have
        been the GPU's fault.
        """
        for index, (shard, died_in) in enumerate(self._suspects):
            if died_in != worker or is_only:
                del self._suspects[index]
                self._alone.add(worker)
                return self._give(worker, shard)
        self._alone.discard(worker)
        return self._give_fresh(worker)

    def next(self, worker: str) -> Shard | None:
        """The next one of the stream; None ends it, so that what is open in it gets committed."""
        return None if worker in self._alone else self._give_fresh(worker)

    def done(self, worker: str, report: ShardReport) -> None:
        """A shard of the worker was committed, or given up by the worker itself."""
        self._open[worker].pop(report.name, None)

    def died(self, worker: str, why: str) -> tuple[list[ShardReport], int]:
        """Takes back what was open in the worker: reports of those given up, and the number of others."""
        given_up = []
        taken_back = self._open.pop(worker, {})
        for shard in taken_back.values():
            deaths = self._deaths[shard.name] = self._deaths.get(shard.name, 0) + 1
            if deaths < MOST_DEATHS:
                self._suspects.append((shard, worker))
                continue
            error = f"a worker died over it {deaths} times; the last one {why}"
            given_up.append(ShardReport(name=shard.name, source=shard.source, error=error))
        return given_up, len(taken_back) - len(given_up)

    def _give_fresh(self, worker: str) -> Shard | None:
        shard = self._next
        if shard is None:
            return None
        self._next = next(self._fresh, None)
        return self._give(worker, shard)

    def _give(self, worker: str, shard: Shard) -> Shard:
        self._open.setdefault(worker, {})[shard.name] = shard
        return shard
