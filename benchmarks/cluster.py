"""A cluster of workers as discrete events: who has which shard when, what fails, what the storage allows.

A worker asks for a shard, reads it while it computes, and commits. A shard is done when both have ended, so
its time is the longer of the two. A worker that fails loses the shard in hand, starts again, and the shard
is done anew. Under dynamic hand-out shards come from one list, in order, as workers ask; under a static
split each worker has its own list from the start.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What is simulated. Times in seconds, sizes in GB, speeds relative to the usual worker.

    `storage_gb_s` and `handouts_per_s` are None where there is no limit; `hours_between_failures` are those
    of one worker, None where none fails. `slow_share` of the workers run at `slow_speed`; shards take
    `shard_seconds` on average, with a deviation of `shard_spread` (of a lognormal's logarithm).
    """

    workers: int
    shards: int
    shard_seconds: float
    shard_gb: float = 1.0
    shard_spread: float = 0.0
    static: bool = False
    slow_share: float = 0.0
    slow_speed: float = 0.5
    hours_between_failures: float | None = None
    restart_seconds: float = 120.0
    storage_gb_s: float | None = None
    handouts_per_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a cluster that can't be."""
        if min(self.workers, self.shards) < 1 or self.shard_seconds <= 0 or self.slow_speed <= 0:
            raise ValueError("workers, shards, seconds and speeds must be positive")


@dataclass(slots=True)
class Outcome:
    """How a simulated run went. `done` counts how often each shard was committed."""

    seconds: float = 0.0
    done: bytearray = field(default_factory=bytearray)
    failures: int = 0
    busy_seconds: float = 0.0
    lost_seconds: float = 0.0

    @property
    def shards_per_second(self) -> float:
        return len(self.done) / self.seconds


class Server:
    """Serves requests one after the other at a rate; without one, at once."""

    def __init__(self, rate: float | None) -> None:
        self._rate, self._free_at = rate, 0.0

    def served_at(self, now: float, amount: float) -> float:
        """When a request made now is answered."""
        if self._rate is None:
            return now
        self._free_at = max(now, self._free_at) + amount / self._rate
        return self._free_at


def simulate(cluster: Cluster) -> Outcome:
    """One run from start to the last commit; the same for the same cluster and seed."""
    return _Run(cluster).outcome()


class _Run:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._environment = simpy.Environment()
        self._storage, self._handouts = Server(cluster.storage_gb_s), Server(cluster.handouts_per_s)
        self._outcome = Outcome(done=bytearray(cluster.shards))
        shards = range(cluster.shards)
        whole = deque(shards)
        self._lists = [
            deque(shards[worker :: cluster.workers]) if cluster.static else whole
            for worker in range(cluster.workers)
        ]
        self._works = _drawn_works(cluster)

    def outcome(self) -> Outcome:
        for worker in range(self._cluster.workers):
            self._environment.process(self._worker(worker))
        self._environment.run()
        return self._outcome

    def _worker(self, worker: int) -> Generator[Any, None, None]:
        """Its shards one by one, until there are none left."""
        cluster, now = self._cluster, self._environment
        luck = random.Random(f"{cluster.seed} {worker}")
        speed = cluster.slow_speed if luck.random() < cluster.slow_share else 1.0
        todo, fails_at = self._lists[worker], self._next_failure(luck)
        while todo:
            shard, asked = todo.popleft(), now.now
            end = self._end_of(shard, speed)
            if end < fails_at:
                yield now.timeout(end - asked)
                self._commit(shard, asked)
            else:
                yield now.timeout(fails_at - asked)
                todo.appendleft(shard)  # for whoever asks next
                self._outcome.failures += 1
                self._outcome.lost_seconds += fails_at - asked
                yield now.timeout(cluster.restart_seconds)
                fails_at = self._next_failure(luck)

    def _end_of(self, shard: int, speed: float) -> float:
        cluster = self._cluster
        start = self._handouts.served_at(self._environment.now, 1)
        work = self._works[shard]
        return max(start + work / speed, self._storage.served_at(start, cluster.shard_gb))

    def _commit(self, shard: int, since: float) -> None:
        self._outcome.done[shard] += 1
        self._outcome.busy_seconds += self._environment.now - since
        self._outcome.seconds = self._environment.now

    def _next_failure(self, luck: random.Random) -> float:
        hours = self._cluster.hours_between_failures
        return math.inf if hours is None else self._environment.now + luck.expovariate(1 / (3600 * hours))


def _drawn_works(cluster: Cluster) -> list[float]:
    """Seconds of each shard, lognormal around `shard_seconds`, the same whoever does it."""
    spread = cluster.shard_spread
    factors = np.random.default_rng(cluster.seed).lognormal(-(spread**2) / 2, spread, cluster.shards)
    works: list[float] = (cluster.shard_seconds * factors).tolist()
    return works
