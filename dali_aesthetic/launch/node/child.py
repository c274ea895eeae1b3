"""A worker process: asks for shards, works them through, tells the launcher. Imports nothing heavy by itself.

Three pipes, because a pipe has one writer at a time: `asks` belongs to whichever thread reads the stream of
shards, `news` to the main thread, `beats` to the one that sends the counters twice a second.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from dali_aesthetic.config import Config, ConfigError, ModelConfig
from dali_aesthetic.launch.node.slots import Slot
from dali_aesthetic.launch.slurm import Task, settling

if TYPE_CHECKING:
    from dali_aesthetic.launch.worker import Worker
    from dali_aesthetic.score.build import ModelReader
    from dali_aesthetic.stats import RunStats, Tally
    from dali_aesthetic.types import Shard

MODEL, FIRST, NEXT = "model", "first", "next"
"""What a worker asks for: the model section with its precision settled, or else the shards to settle it on; a
stream's first shard, as long as that takes; one more."""

BEAT_SECONDS = 0.5
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_OWN_TROUBLE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)


@dataclass(frozen=True, slots=True)
class Pipes:
    """The worker's ends."""

    asks: Connection
    news: Connection
    beats: Connection


@dataclass(frozen=True, slots=True)
class Settled:
    """The run's model section, its precision settled by this worker for all."""

    model: ModelConfig


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker is built; `record` is what `run.json` would hold."""

    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Broken:
    """The worker ends. `fatal` is an error that every worker would meet: the launcher raises it."""

    text: str
    fatal: Exception | None = None


def main(config: Config, slot: Slot, task: Task, pipes: Pipes) -> None:
    """The process's life: build, work streams of shards until there are no more, exit."""
    _die_with_launcher()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the launcher decides
    signal.signal(signal.SIGTERM, _stop)
    code = 0
    try:
        _work(config, slot, task, pipes)
    except _Stopped:
        pass
    except Exception as error:
        code = 1
        traceback.print_exc()
        with suppress(OSError):
            pipes.news.send(Broken(f"{type(error).__name__}: {error}", _fatal(error)))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what is committed is on disk; libraries' clean-up at exit can hang or crash


class _Stopped(BaseException):
    """The launcher asked the process to end."""


def _stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise _Stopped


class _BadStart(Exception):
    """Wraps what went wrong before the first shard, where configuration and weights are looked at."""


def _fatal(error: Exception) -> Exception | None:
    """What no other worker would fare better with: configuration, weights, a full disk."""
    from dali_aesthetic.score.published import WeightsUnavailable

    cause = error.__cause__ if isinstance(error, _BadStart) else None
    if isinstance(cause, ValueError | WeightsUnavailable | OSError):
        return _portable(cause)
    passing = isinstance(error, ConnectionError | TimeoutError)
    if isinstance(error, OSError) and not passing and error.errno not in _OWN_TROUBLE:
        return _portable(error)
    return None


def _portable(error: Exception) -> Exception:
    """`error`, or its words where it can't travel to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return OSError(str(error))
    return error


def _die_with_launcher() -> None:
    """SIGKILL when the parent ends, however it ends: an orphan would go on writing to an unlocked output."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _work(config: Config, slot: Slot, task: Task, pipes: Pipes) -> None:
    try:
        config = _on_slot(config, slot)
        from dali_aesthetic.launch.worker import build_worker, model_reader, run_record

        reader = model_reader(config.model)
        config = config.model_copy(update={"model": _settle_model(config, task, pipes, reader)})
        worker = build_worker(config, reader)
    except Exception as error:
        raise _BadStart(f"could not start: {type(error).__name__}: {error}") from error
    pipes.news.send(Ready(run_record(config, worker)))
    totals = _Totals(pipes.beats)
    while (first := _ask(pipes, FIRST)) is not None:
        _stream(config, slot, worker, first, pipes, totals)


def _on_slot(config: Config, slot: Slot) -> Config:
    """The config with the slot's device and threads; the process bound to the cores near its GPU."""
    import torch

    from dali_aesthetic.launch.node.slots import nearest_cpus
    from dali_aesthetic.launch.worker import resolve_device

    torch.set_num_threads(slot.threads)
    if slot.visible is not None and torch.cuda.device_count() != 1:
        raise ConfigError(
            f"{slot.name} ({slot.visible}) is not the only GPU that its worker sees but one of "
            f"{torch.cuda.device_count()}: check nvidia-smi"
        )
    if slot.visible is not None and (cpus := nearest_cpus(resolve_device("cuda"))):
        os.sched_setaffinity(0, cpus)  # the threads that DALI and torch start from here on inherit it
    threads = config.decode.num_threads or slot.threads
    decode = config.decode.model_copy(update={"num_threads": threads})
    return config.model_copy(update={"device": "cpu" if slot.visible is None else "cuda", "decode": decode})


def _settle_model(config: Config, task: Task, pipes: Pipes, reader: ModelReader) -> ModelConfig:
    from dali_aesthetic.launch.precision import prepare

    answer = _ask(pipes, MODEL)
    if isinstance(answer, ModelConfig):
        return answer
    with settling(config.output, task):
        model = prepare(config, answer, reader).model
    pipes.news.send(Settled(model))
    return model


def _stream(config: Config, slot: Slot, worker: Worker, first: Shard, pipes: Pipes, totals: _Totals) -> None:
    from dali_aesthetic.launch.work import work_shards
    from dali_aesthetic.overlap import every
    from dali_aesthetic.stats import RunStats

    stats = totals.begin(RunStats())
    reports = work_shards(config, worker, _shards(first, pipes), stats, memory_share=slot.sharers)
    with every(BEAT_SECONDS, totals.send, "beat"), closing(reports):
        for report in reports:
            pipes.news.send(report)
    totals.end()


def _shards(first: Shard, pipes: Pipes) -> Iterator[Shard]:
    shard: Shard | None = first
    while shard is not None:
        yield shard
        shard = _ask(pipes, NEXT)


def _ask(pipes: Pipes, what: str) -> Any:
    pipes.asks.send(what)
    return pipes.asks.recv()


class _Totals:
    """What the worker has done in all of its streams, sent while it works."""

    def __init__(self, beats: Connection) -> None:
        from dali_aesthetic.stats import Tally

        self._beats = beats
        self._before: Tally = Tally()
        self._stats: RunStats | None = None

    def begin(self, stats: RunStats) -> RunStats:
        self._stats = stats
        return stats

    def send(self) -> None:
        if self._stats is not None:
            try:
                self._beats.send(self._before + self._stats.tally())
            except OSError:  # The launcher has gone. A fork server lives on with its children, so that its
                os.kill(os.getpid(), signal.SIGKILL)  # end does not reach them.

    def end(self) -> None:
        assert self._stats is not None
        self._before, self._stats = self._before + self._stats.tally(), None
        self._beats.send(self._before)
