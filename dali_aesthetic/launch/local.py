"""One process, one device: plan, skip what is committed, run the loop."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

from dali_aesthetic.config import Config
from dali_aesthetic.launch.memory import budget_bytes, memory_bytes
from dali_aesthetic.launch.stall import stall_guard
from dali_aesthetic.launch.timing import timed
from dali_aesthetic.launch.worker import Worker, build_worker, run_record
from dali_aesthetic.run_shard import BATCHES_IN_FLIGHT, Rooms, run_shards
from dali_aesthetic.shards.buffer import ReadLimits
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.stats import RunStats
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.types import Shard, ShardReport
from dali_aesthetic.write.commit import ShardSink
from dali_aesthetic.write.lock import claim
from dali_aesthetic.write.output import open_output

Watch = Callable[[RunStats, int], AbstractContextManager[object]]
"""Is entered for the length of the loop with its live counters and the number of shards to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run did. `num_skipped` shards were committed by an earlier run of the same command.

    `threshold` is the one that was applied, a share of the samples resolved to its raw score.
    """

    stats: RunStats
    num_shards: int
    num_skipped: int
    threshold: Threshold

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
    shards = plan_shards(config.input, output=config.output, image_column=config.image_column)
    worker = build_worker(config)
    try:
        return _run(config, shards, worker, watch)
    finally:
        worker.decoder.close()


def _run(config: Config, shards: list[Shard], worker: Worker, watch: Watch | None) -> RunResult:
    with claim(config.output):
        todo = open_output(config.output, run_record(config, worker), shards)
        stats = RunStats()
        with _sink(config, worker) as sink, (watch or _unwatched)(stats, len(todo)):
            with stall_guard(stats, config.guard.stall_timeout):
                reports = run_shards(todo, _rooms(config, worker, sink), stats)
                _exhaust(timed(reports, config.output, stats))
            stats.finish()
    return RunResult(
        stats=stats, num_shards=len(shards), num_skipped=len(shards) - len(todo), threshold=config.threshold
    )


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


def _rooms(config: Config, worker: Worker, sink: ShardSink) -> Rooms:
    return Rooms(
        read_limits=ReadLimits(
            max_member_bytes=config.guard.max_member_mb << 20,
            max_tar_bytes=config.guard.max_tar_gb << 30,
            max_download_bytes=memory_bytes() // 2,
        ),
        batch_bytes=budget_bytes(config.guard.memory_budget_gb) // BATCHES_IN_FLIGHT,
        limits=worker.limits,
        decoder=worker.decoder,
        scorer=worker.scorer,
        sink=sink,
    )


def _exhaust(reports: Generator[ShardReport, None, None]) -> None:
    # Closed here and now: a signal between two reports would else leave the stages' threads running.
    with closing(reports):
        for _ in reports:
            pass


def _unwatched(stats: RunStats, num_shards: int) -> AbstractContextManager[object]:
    return nullcontext()
