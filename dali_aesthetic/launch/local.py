"""One process, one device: plan, skip what is committed, run the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from dali_aesthetic.config import Config
from dali_aesthetic.launch.worker import Worker, build_worker, run_record
from dali_aesthetic.run_shard import Rooms, run_shards
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.stats import RunStats
from dali_aesthetic.types import Shard, ShardReport
from dali_aesthetic.write.commit import ShardSink
from dali_aesthetic.write.output import open_output

Watch = Callable[[RunStats, int], AbstractContextManager[object]]
"""Is entered for the length of the loop with its live counters and the number of shards to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run did. `num_skipped` shards were committed by an earlier run of the same command."""

    stats: RunStats
    num_shards: int
    num_skipped: int

    @property
    def exit_code(self) -> int:
        """0 where every shard is committed and at least one image was ever scored, else 1."""
        scored_nothing = self.stats.num_scored == 0 and self.num_skipped == 0
        return 1 if self.stats.failed or scored_nothing else 0


def run(config: Config, *, watch: Watch | None = None) -> RunResult:
    """Score every sample of `config.input` and write the kept ones, scores and stats to `config.output`.

    Raises `ConfigError` (also for an output that holds another run), `WeightsUnavailable`, and OSError
    where the output can't be written. A shard that can't be read is in the result's `stats.failed`.
    """
    shards = plan_shards(config.input, output=config.output)
    worker = build_worker(config)
    try:
        return _run(config, shards, worker, watch)
    finally:
        worker.decoder.close()


def _run(config: Config, shards: list[Shard], worker: Worker, watch: Watch | None) -> RunResult:
    todo = open_output(config.output, run_record(config, worker), shards)
    stats = RunStats()
    sink = ShardSink(config.output, worker.scorer.head_names, config.threshold.keep)
    rooms = Rooms(
        limits=worker.limits,
        decoder=worker.decoder,
        scorer=worker.scorer,
        threshold=config.threshold,
        sink=sink,
    )
    try:
        with (watch or _unwatched)(stats, len(todo)):
            _exhaust(run_shards(todo, rooms, stats))
        stats.finish()
    finally:
        sink.close()
    return RunResult(stats=stats, num_shards=len(shards), num_skipped=len(shards) - len(todo))


def _exhaust(reports: Iterator[ShardReport]) -> None:
    for _ in reports:
        pass


def _unwatched(stats: RunStats, num_shards: int) -> AbstractContextManager[object]:
    return nullcontext()
