"""The hot loop: read, decode, score, write, commit. Start here to know the architecture.

    shards --read--> samples --check--> encoded batches --DALI--> pixels on the device --encoder, heads-->
    scores --> rows, kept tar entries, and a commit when a shard's last sample is written

Each stage is a generator in a thread of its own, one bounded queue ahead of the next. Batches fill across
shard borders. Nothing waits for the device but the last line, one batch behind the launch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

from dali_aesthetic.decode.batches import Prefilter, fill_batches
from dali_aesthetic.decode.decoder import DaliDecoder
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.overlap import ahead, calm_interpreter
from dali_aesthetic.score.scorer import Scorer
from dali_aesthetic.shards.opened import DEFAULT_LIMITS, ReadLimits
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.stats import RunStats
from dali_aesthetic.threshold import preset_counts
from dali_aesthetic.types import PendingScores, ScoredBatch, Shard, ShardReport
from dali_aesthetic.write.sink import ShardSink

BATCHES_IN_FLIGHT = 16
"""Batches alive at a time, at most: two in each queue, one in each hand, and those inside the decoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The working parts of a worker, built once for all of its shards. `batch_bytes` of None is no limit."""

    limits: Limits
    decoder: DaliDecoder
    scorer: Scorer
    sink: ShardSink
    read_limits: ReadLimits = DEFAULT_LIMITS
    batch_bytes: int | None = None
    prefilter: Prefilter | None = None


def run_shards(
    shards: Iterable[Shard], stages: Stages, stats: RunStats
) -> Generator[ShardReport, None, None]:
    """Process `shards` in order; a report for each as it is committed, or given up with an error."""
    samples = read_shards(shards, stages.read_limits)
    bounds = (stages.scorer.batch_size, stages.limits, stages.batch_bytes, BATCHES_IN_FLIGHT)
    batches = fill_batches(samples, *bounds, stages.prefilter)
    encoded = ahead(batches, 2, "storage")
    images = ahead(stages.decoder.decode(encoded), 2, "decode")
    launched = ahead(stages.scorer.score(images), 2, "encode")
    stats.stages, stats.engine = [encoded.times, images.times, launched.times], stages.decoder.engine
    with calm_interpreter():
        for pending in launched:
            scored = _wait(pending, stats)
            yield from _write(scored, stages, stats)
        yield from _timed(stages.sink.flush, stats)


def _wait(pending: PendingScores, stats: RunStats) -> ScoredBatch:
    start = time.perf_counter()
    scored = pending.wait()
    stats.add_wait(time.perf_counter() - start)
    return scored


def _write(scored: ScoredBatch, stages: Stages, stats: RunStats) -> list[ShardReport]:
    reports = _timed(lambda: stages.sink.write(scored), stats)
    stats.add(scored.headers, stages.sink.num_kept, preset_counts(scored.scores_RH[:, 0]))
    return reports


def _timed(commit: Callable[[], list[ShardReport]], stats: RunStats) -> list[ShardReport]:
    start = time.perf_counter()
    reports = commit()
    stats.add_reports(reports, time.perf_counter() - start)
    return reports
