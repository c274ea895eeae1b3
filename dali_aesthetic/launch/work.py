"""A worker's run over shards on one device, which every engine calls.

The parts of a run are assembled from its config here: the sink, the stages, their limits and the stall guard.
So are the rules for failures, which hold on one node and in a cluster: which shards to give up, and which
errors end the run."""

from __future__ import annotations

import errno
import faulthandler
import gc
import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.decode.batches import Prefilter
from dali_aesthetic.launch.worker import Worker, read_limits_of
from dali_aesthetic.overlap import every, stacks, values_of_threads
from dali_aesthetic.predicate import Predicate
from dali_aesthetic.run_shard import BATCHES_IN_FLIGHT, Stages, run_shards
from dali_aesthetic.shards.opened import DEFAULT_LIMITS
from dali_aesthetic.stats import RunStats
from dali_aesthetic.stores.store import StoreUnusable
from dali_aesthetic.timing import timed
from dali_aesthetic.types import Sample, Shard, ShardReport
from dali_aesthetic.write.rows import (
    condition_columns,
    json_columns,
    known_columns,
    known_passes,
    score_columns,
)
from dali_aesthetic.write.sink import ShardSink

MOST_DEATHS = 3
"""A shard that was open in so many workers when they died is given up."""
_OF_ONE_PROCESS = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
_GIB = 1 << 30
_DEFAULT_SHARE, _MOST_BY_DEFAULT = 4, 16 * _GIB
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_GRACE_SECONDS = 30.0
_KEYS_SHOWN, _KEY_CHARACTERS = 8, 100


def work_shards(
    config: Config, worker: Worker, shards: Iterable[Shard], stats: RunStats, *, memory_share: int = 1
) -> Generator[ShardReport, None, None]:
    """Commits each of `shards` to `config.output` and yields its report; `stats` counts along.

    The caller has claimed the output and written its `run.json`, or knows who has. `shards` may be a stream
    that waits for its next item: a shard is taken when there is room to read it, and the last ones are
    committed when the stream ends. Closing the generator abandons what is open; a report with an `error` is
    a shard that was given up. Several streams may follow one another on one worker. `memory_share` is the
    number of workers that share this host's memory.

    Raises OSError where the output can't be written, and whatever broke a stage; ends the process where
    nothing moves for `config.guard.stall_timeout`.
    """
    with (
        sink_of(config, worker.scorer.head_names, embeddings=config.save_embeddings) as sink,
        stall_guard(stats, config.guard.stall_timeout),
    ):
        reports = run_shards(shards, stages_of(config, worker, sink, memory_share), stats)
        # Closed here and now: a signal between two reports would else leave the stages' threads running.
        with closing(timed(reports, config.output, stats, worker.start)) as timed_reports:
            yield from timed_reports
    stats.finish()


def sink_of(config: Config, head_names: Sequence[str], *, embeddings: bool = False) -> ShardSink:
    """The writers of `config.output`, for scores of `head_names` and, where asked, `embeddings`."""
    return ShardSink(
        config.output,
        head_names,
        config.threshold.keep,
        images=not config.scores_only,
        max_bad_fraction=config.guard.max_bad_fraction,
        quarantine=config.guard.quarantine,
        embeddings=embeddings,
        columns=config.columns,
        where=None if config.scores_only else condition_of(config, head_names),
        output_format=config.output_format,
        profile=config.profile,
    )


def condition_of(config: Config, head_names: Sequence[str]) -> Predicate | None:
    """What `--where` asks of a row. Raises ValueError for a column that the scores won't have."""
    where = config.threshold.where
    return Predicate(where, condition_columns(head_names, config.columns, config.profile)) if where else None


def prefilter_of(config: Config, head_names: Sequence[str]) -> Prefilter | None:
    """What `--prefilter` asks of a sample. Raises ValueError for a column not known before decoding."""
    if not config.prefilter:
        return None
    names = score_columns(head_names)
    condition = Predicate(config.prefilter, known_columns(config.columns, names), "--prefilter")
    return partial(known_passes, condition, json_columns(config.columns, names))


def stages_of(config: Config, worker: Worker, sink: ShardSink, memory_share: int = 1) -> Stages:
    """The parts of the hot loop, bound to a share of the memory budget.

    Half of it holds the batches in flight, or a file of a server that sends whole ones. A quarter is for
    reading: parts of tars ahead of the reader, or a page of Parquet. A quarter is for the commit, which reads
    Parquet again.
    """
    budget = budget_bytes(config.guard.memory_budget_gb) // memory_share
    return Stages(
        read_limits=replace(
            read_limits_of(config),
            max_download_bytes=budget // 2,
            read_ahead_bytes=min(DEFAULT_LIMITS.read_ahead_bytes, budget // 4),
            max_page_bytes=budget // 4,
        ),
        batch_bytes=budget // 2 // (BATCHES_IN_FLIGHT + bool(config.prefilter)),
        prefilter=prefilter_of(config, worker.scorer.head_names) if config.prefilter else None,
        limits=worker.limits,
        decoder=worker.decoder,
        scorer=worker.scorer,
        sink=sink,
    )


def budget_bytes(budget_gb: float | None) -> int:
    """`memory_budget_gb` in bytes; None is a quarter of the memory and at most 16 GiB."""
    if budget_gb is not None:
        return int(budget_gb * _GIB)
    return min(memory_bytes() // _DEFAULT_SHARE, _MOST_BY_DEFAULT)


def memory_bytes() -> int:
    """The machine's memory, or its container's share."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *filter(None, map(_cgroup_limit, _CGROUP_LIMITS))])


def _cgroup_limit(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such cgroup, or "max"
        return None


@contextmanager
def stall_guard(stats: RunStats, timeout: float) -> Iterator[None]:
    """Ends the process with exit code 1 where `stats` show no progress for `timeout` seconds; 0: never.

    Every thread's stack and the samples in flight are written to standard error before. A hang costs minutes
    then, not the night.
    """
    if timeout <= 0:
        yield
        return
    watchdog = _Watchdog(stats, timeout, sys.__stderr__ or open(os.devnull, "w"))  # noqa: SIM115
    try:
        with every(min(1.0, timeout / 4), watchdog.check, "stall"):
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class _Watchdog:
    """Compares the progress of `stats` with that of its last check."""

    def __init__(self, stats: RunStats, timeout: float, file: TextIO) -> None:
        self._stats, self._timeout, self._file = stats, timeout, file
        self._progress, self._since = -1, 0.0

    def check(self) -> None:
        if self._stats.progress != self._progress:
            self._progress, self._since = self._stats.progress, time.monotonic()
            # For a hang that holds the interpreter lock, where this thread would never get its turn.
            faulthandler.dump_traceback_later(self._timeout + _GRACE_SECONDS, exit=True, file=self._file)
        elif time.monotonic() - self._since >= self._timeout:
            self._end_process()

    def _end_process(self) -> None:
        try:
            self._file.write(
                f"{stacks()}\nstalled: no progress for {self._timeout:g} s after {self._stats.num_samples:,} "
                f"samples; every thread's stack is above.{in_flight()} Committed shards are kept: run the "
                "same command again to go on (--stall-timeout sets the seconds, 0 waits for ever)\n"
            )
            self._file.flush()
        finally:
            os._exit(1)  # whatever hangs would also hang an orderly end


def in_flight() -> str:
    """Sentences that name the samples between reading and writing, and the one that each thread holds.

    The garbage collector is asked: only it knows them all, and nothing has to be kept for it.
    """
    alive = [one for one in gc.get_objects() if type(one) is Sample]
    alive.sort(key=lambda sample: (sample.shard.index, sample.offset, sample.source))
    by_shard = groupby(alive, key=lambda sample: sample.shard)
    shown = [f"{_keys(list(samples))} of {shard.source}" for shard, samples in by_shard]
    found = {id(part): sample for sample in alive for part in (sample, sample.image) if part is not None}
    held = {
        f" {name} holds {_keys([found[id(value)]])} of {found[id(value)].shard.source}."
        for name, value in values_of_threads()
        if id(value) in found
    }
    return f" {len(alive):,} samples are in flight: {'; '.join(shown)}.{''.join(sorted(held))}"


def _keys(samples: Sequence[Sample]) -> str:
    keys = [sample.key[:_KEY_CHARACTERS] for sample in samples]
    return ", ".join(keys if len(keys) <= _KEYS_SHOWN else [*keys[: _KEYS_SHOWN - 1], "...", keys[-1]])


def given_up(shard: Shard, deaths: int, why: str) -> ShardReport | None:
    """The report of a shard that was open in `deaths` workers when they died, the last one because of `why`.

    None while it gets another try.
    """
    if deaths < MOST_DEATHS:
        return None
    error = f"a worker died over it {deaths} times; the last one {why}"
    return ShardReport(name=shard.name, source=shard.source, error=error)


def is_fatal(error: BaseException) -> bool:
    """Whether every other worker would meet this error of a running worker, such as a full disk.

    A lost connection passes; too little memory or too many open files are the process's own.
    """
    passing = isinstance(error, ConnectionError | TimeoutError)
    is_of_output = isinstance(error, OSError) and error.errno not in _OF_ONE_PROCESS
    return isinstance(error, StoreUnusable) or (is_of_output and not passing)


def check_same_run(worker: str, ours: Mapping[str, Any], first: Mapping[str, Any], fix: str) -> None:
    """Raises ConfigError with the `fix` where a `worker`'s identity in `run.json` isn't the first one's.

    On a GPU of another kind, for example, it would give other scores.
    """
    if other := sorted(name for name in ours if ours[name] != first.get(name)):
        listed = ", ".join(f"{name}: {ours[name]!r}, not {first.get(name)!r}" for name in other)
        raise ConfigError(f"{worker} would run with another {listed}: {fix}")
