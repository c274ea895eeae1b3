"""The engine of `filter`: samples and their stored scores side by side, through the sink of a run. No GPU.

The output is byte for byte that of `run` with the same threshold: the same sink writes it from the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dali_aesthetic.config import Config
from dali_aesthetic.launch.engine import Prepared, RunResult, Watch, launch
from dali_aesthetic.launch.run import run
from dali_aesthetic.launch.slurm import Task
from dali_aesthetic.launch.work import condition_of, sink_of
from dali_aesthetic.launch.worker import cut_identity, read_limits_of
from dali_aesthetic.layout import CONFIG, IDENTITY, SCORED, committed_names
from dali_aesthetic.overlap import ahead
from dali_aesthetic.shards.opened import ReadLimits
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.stats import RunStats
from dali_aesthetic.threshold import preset_counts
from dali_aesthetic.types import EncodedBatch, Sample, ScoredBatch, Shard, ShardEnd
from dali_aesthetic.write.read_scores import (
    ScoresMismatch,
    StoredScores,
    read_fingerprint,
    read_raw_scores,
    read_scored_by,
    read_scores,
)
from dali_aesthetic.write.sink import ShardSink

_ROWS = 1024


def filter_scored(config: Config, scores: str | Path, *, watch: Watch | None = None) -> RunResult:
    """Write the samples of `config.input` whose score in the folder `scores` is within the threshold.

    Raises `ScoresMismatch` where the folder holds no scores, or those of another input; else as `run`. A
    shard without committed scores is in the result's `stats.failed`.
    """
    scored_by = read_scored_by(scores)
    config = _as_scored(config, scored_by)
    condition_of(config, scored_by["heads"])  # refused before the input is listed
    return launch(config, partial(_stored_scores, str(scores), scored_by), watch)


def run_top(config: Config, *, watch: Watch | None = None) -> RunResult:
    """`run` for a threshold that is a share: scores everything into `OUTPUT/scored`, then cuts that."""
    scored = f"{config.output}/{SCORED}"
    # `part_of` keeps the files that the cut writes out of the input of a second call.
    half = {"output": scored, "part_of": config.output, "scores_only": True}
    first = run(config.model_copy(update=half), watch=watch)
    if first.exit_code:
        return first
    return filter_scored(config, scored, watch=watch)


@contextmanager
def _stored_scores(
    scores: str, scored_by: dict[str, Any], config: Config, shards: Sequence[Shard], task: Task
) -> Iterator[Prepared]:
    """The engine of a cut."""
    given = config.model_dump(mode="json")  # with a share, not the score that it resolves to: it can be rerun
    if config.threshold.top is not None:
        raw_scores = read_raw_scores(scores, _scored_names(scores, shards))
        config = config.model_copy(update={"threshold": config.threshold.resolve_top(raw_scores)})
    identity = {"input": list(config.input), **cut_identity(config), "scored_by": scored_by}
    record = {IDENTITY: identity, CONFIG: given}
    head_names = [str(head) for head in scored_by["heads"]]

    def work(todo: Sequence[Shard], stats: RunStats) -> None:
        with sink_of(config, head_names) as sink:
            _write(todo, scores, sink, stats, read_limits_of(config))
        stats.finish()

    yield Prepared(config=config, record=record, work=work)


def _write(
    shards: Sequence[Shard], scores: str, sink: ShardSink, stats: RunStats, limits: ReadLimits
) -> None:
    batches = ahead(_batches(shards, scores, sink, limits), 4, "storage")
    stats.stages = [batches.times]
    for batch in batches:
        start = time.perf_counter()
        stats.reports += sink.write(batch)
        stats.wrote += time.perf_counter() - start
        stats.add(batch.headers, sink.num_kept, preset_counts(batch.scores_RH[:, 0]))
    stats.reports += sink.flush()


def _batches(
    shards: Sequence[Shard], scores: str, sink: ShardSink, limits: ReadLimits
) -> Iterator[ScoredBatch]:
    done = committed_names(scores)
    for shard in shards:
        if shard.name not in done:
            error = f"{scores} has no scores of it: run `score` again to complete them"
            nothing = StoredScores([], [], [], np.empty((0, len(sink.head_names)), np.float32))
            yield _batch(nothing, 0, [], (ShardEnd(shard=shard, error=error),))
            continue
        # An image that was replaced has the same key and row; the fingerprint has the size of its file.
        if shard.kind == "folder" and read_fingerprint(scores, shard.name) != shard.fingerprint:
            raise _mismatch(shard, f"files of its shard {shard.name} came, went or have another size")
        stored = read_scores(scores, shard.name, sink.head_names, sink.profile)
        yield from _shard_batches(shard, stored, limits)


def _shard_batches(shard: Shard, stored: StoredScores, limits: ReadLimits) -> Iterator[ScoredBatch]:
    samples: list[Sample] = []
    start = 0
    for item in read_shards([shard], limits):
        row = start + len(samples)
        if isinstance(item, ShardEnd):
            if not item.error and row != len(stored.keys):
                raise _mismatch(shard, f"it has {row} samples, its scores {len(stored.keys)}")
            yield _batch(stored, start, samples, (item,))
            return
        if row >= len(stored.keys):
            raise _mismatch(shard, f"it has more samples than its {len(stored.keys)} scores")
        if (item.key, item.offset) != (stored.keys[row], stored.offsets[row]):
            there = f"{stored.keys[row]!r} at byte {stored.offsets[row]}"
            raise _mismatch(
                shard, f"sample {row} is {item.key!r} at byte {item.offset}, its scores have {there}"
            )
        samples.append(item)
        if len(samples) == _ROWS:
            yield _batch(stored, start, samples)
            start, samples = start + _ROWS, []


def _batch(
    stored: StoredScores, start: int, samples: list[Sample], ended: tuple[ShardEnd, ...] = ()
) -> ScoredBatch:
    rows = slice(start, start + len(samples))
    headers = tuple(stored.headers[rows])
    encoded = EncodedBatch(samples=tuple(samples), headers=headers, ended=ended)
    profile_R = None if stored.profile_R is None else stored.profile_R[rows]
    return ScoredBatch(
        encoded=encoded, headers=headers, scores_RH=stored.scores_RH[rows], profile_R=profile_R
    )


def _mismatch(shard: Shard, what: str) -> ScoresMismatch:
    return ScoresMismatch(
        f"{shard.source} is not what was scored: {what}. Give the --input that was scored, or score it again"
    )


def _scored_names(scores: str, shards: Sequence[Shard]) -> list[str]:
    """The names of the input's shards. Raises ScoresMismatch unless all of them are scored."""
    done = committed_names(scores)
    missing = [shard.name for shard in shards if shard.name not in done]
    if missing:
        raise ScoresMismatch(
            f"--keep-top needs every score, but {scores} lacks {len(missing)} shards (like {missing[0]}): "
            "run `score` again to complete them"
        )
    return [shard.name for shard in shards]


def _as_scored(config: Config, scored_by: dict[str, Any]) -> Config:
    """The config with the scoring run's size limit, under which rows have the same json, and with its columns
    unless others are chosen, and its profile."""
    limit = scored_by.get("max_member_mb", config.guard.max_member_mb)
    guard = config.guard.model_copy(update={"max_member_mb": limit})
    columns = config.columns or tuple(scored_by.get("columns", ()))
    profile = bool(scored_by.get("profile"))
    return config.model_copy(update={"guard": guard, "columns": columns, "profile": profile})
