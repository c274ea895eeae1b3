"""Working shards through on one device, under a lock that the launcher holds: what every launcher calls."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from dali_aesthetic.config import Config
from dali_aesthetic.launch.stall import stall_guard
from dali_aesthetic.launch.worker import Worker
from dali_aesthetic.run_shard import BATCHES_IN_FLIGHT, Rooms, run_shards
from dali_aesthetic.shards.opened import DEFAULT_LIMITS, ReadLimits
from dali_aesthetic.stats import RunStats
from dali_aesthetic.timing import timed
from dali_aesthetic.types import Shard, ShardReport
from dali_aesthetic.write.sink import ShardSink


def work_shards(
    config: Config, worker: Worker, shards: Iterable[Shard], stats: RunStats, *, memory_share: int = 1
) -> Generator[ShardReport, None, None]:
    """Commits each of `shards` to `config.output` and yields its report; `stats` counts along.

    The caller has claimed the output and written its `run.json`, or knows who has. `shards` may be a stream
    that waits for its next item: a shard is taken when there is room to read it, and the last ones are
    committed when the stream ends. Closing the generator abandons what is open; a report with an `error` is
    a shard that was given up. Several streams may follow one another on one worker. `memory_share` is the
    number of workers that share this host's memory.

    Raises OSError where the output can't be written, and whatever broke a room; ends the process where
    nothing moves for `config.guard.stall_timeout`.
    """
    with _sink(config, worker) as sink, stall_guard(stats, config.guard.stall_timeout):
        reports = run_shards(shards, _rooms(config, worker, sink, memory_share), stats)
        # Closed here and now: a signal between two reports would else leave the stages' threads running.
        with closing(timed(reports, config.output, stats, worker.start)) as timed_reports:
            yield from timed_reports
    stats.finish()


def _sink(config: Config, worker: Worker) -> ShardSink:
    return ShardSink(
        config.output,
        worker.scorer.head_names,
        config.threshold.keep,
        images=not config.scores_only,
        max_bad_fraction=config.guard.max_bad_fraction,
        quarantine=config.guard.quarantine,
        embeddings=config.save_embeddings,
    )


def _rooms(config: Config, worker: Worker, sink: ShardSink, memory_share: int) -> Rooms:
    budget = budget_bytes(config.guard.memory_budget_gb) // memory_share
    ahead = min(DEFAULT_LIMITS.read_ahead_bytes, budget // 4)
    return Rooms(
        read_limits=replace(
            ReadLimits.of(config.guard.max_member_mb, config.guard.max_tar_gb),
            max_download_bytes=memory_bytes() // 2 // memory_share,
            read_ahead_bytes=ahead,
        ),
        batch_bytes=(budget - ahead) // BATCHES_IN_FLIGHT,
        limits=worker.limits,
        decoder=worker.decoder,
        scorer=worker.scorer,
        sink=sink,
    )


# FOLDED dali_aesthetic/launch/memory.py: How much memory there is, and how much of it encoded images may take.


_GIB = 1 << 30
_DEFAULT_SHARE, _MOST_BY_DEFAULT = 4, 16 * _GIB
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int:
    """The machine's memory, or its container's share."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *map(_limit, _CGROUP_LIMITS)])


def budget_bytes(budget_gb: float | None) -> int:
    """What `memory_budget_gb` means; None is a quarter of the memory and at most 16 GiB."""
    if budget_gb is not None:
        return int(budget_gb * _GIB)
    return min(memory_bytes() // _DEFAULT_SHARE, _MOST_BY_DEFAULT)


def _limit(path: str) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such cgroup, or "max"
        return 1 << 62
