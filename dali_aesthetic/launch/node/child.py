"""A worker process: asks for shards, commits them, reports to the launcher.

Importing this module is cheap, and what is heavy is imported by functions: the process must be tied to its
launcher and handle signals before it spends seconds on torch and DALI.

There are four pipes because a pipe has one writer at a time. `requests` belongs to whichever thread reads
the stream of shards, `messages` to the main thread, `heartbeats` to the one that sends the counters, `logs`
to the handler of the package's log, which has a lock.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from dali_aesthetic.config import Config, ConfigError, ModelConfig
from dali_aesthetic.launch.node.slots import Slot, nearest_cpus
from dali_aesthetic.launch.slurm import Task, settling
from dali_aesthetic.launch.streams import keep_streams, quiet_libraries
from dali_aesthetic.launch.work import is_fatal
from dali_aesthetic.stats import StreamCounter

if TYPE_CHECKING:
    from dali_aesthetic.launch.worker import Worker
    from dali_aesthetic.score.build import ModelReader
    from dali_aesthetic.types import Shard

MODEL, FIRST, NEXT = "model", "first", "next"
"""The requests: the model section with its precision settled, or else the shards to settle it on; the first
shard of a stream, waited for as long as that takes; the next shard of the stream."""

HEARTBEAT_SECONDS = 0.5
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True, slots=True)
class Pipes:
    """The worker's ends."""

    requests: Connection
    messages: Connection
    heartbeats: Connection
    logs: Connection


@dataclass(frozen=True, slots=True)
class Logged:
    """A message for the launcher's log, by the logger of this name."""

    logger: str
    level: int
    text: str


class _ToLauncher(logging.Handler):
    def __init__(self, logs: Connection) -> None:
        super().__init__(logging.INFO)
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # the launcher has gone
            self._logs.send(Logged(record.name, record.levelno, record.getMessage()))


@dataclass(frozen=True, slots=True)
class ModelSettled:
    """The run's model section, its precision settled by this worker for all."""

    model: ModelConfig


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker is built. `record` is what `run.json` would hold."""

    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker ends. `fatal` is an error that every worker would meet: the launcher raises it."""

    text: str
    fatal: Exception | None = None


def main(config: Config, slot: Slot, task: Task, pipes: Pipes) -> None:
    """The process's life: build the worker, work streams of shards until there are no more, exit."""
    _die_with_launcher()
    keep_streams()
    package = logging.getLogger(__name__.partition(".")[0])
    package.addHandler(_ToLauncher(pipes.logs))
    package.setLevel(logging.INFO)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the launcher decides
    signal.signal(signal.SIGTERM, _stop)
    code = 0
    try:
        with quiet_libraries(config.observe.library_messages) as library_lines:
            _work(config, slot, task, pipes, library_lines)
    except _Stopped:
        pass
    except Exception as error:
        code = 1
        traceback.print_exc()
        with suppress(OSError):
            pipes.messages.send(Failed(f"{type(error).__name__}: {error}", _fatal(error)))
    with suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what is committed is on disk; libraries' clean-up at exit can hang or crash


class _Stopped(BaseException):
    """The launcher asked the process to end."""


def _stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise _Stopped


class _StartFailed(Exception):
    """Wraps an error from before the first shard, where configuration and weights are looked at."""


def _fatal(error: Exception) -> Exception | None:
    """The error to raise in the launcher: of configuration, weights or the output."""
    from dali_aesthetic.score.published import WeightsUnavailable

    cause = error.__cause__ if isinstance(error, _StartFailed) else None
    if isinstance(cause, ValueError | WeightsUnavailable | OSError):
        return _portable(cause)
    return _portable(error) if is_fatal(error) else None


def _portable(error: Exception) -> Exception:
    """`error`, or its text as an OSError where it can't be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return OSError(str(error))
    return error


def _die_with_launcher() -> None:
    """SIGKILL when the parent ends, however it ends: an orphan would go on writing to an unlocked output."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _work(config: Config, slot: Slot, task: Task, pipes: Pipes, library_lines: Callable[[], int]) -> None:
    try:
        config = _on_slot(config, slot)
        from dali_aesthetic.launch.worker import build_worker, model_reader, run_record

        reader = model_reader(config.model)
        config = config.model_copy(update={"model": _settle_model(config, task, pipes, reader)})
        worker = build_worker(config, reader)
    except Exception as error:
        raise _StartFailed(f"could not start: {type(error).__name__}: {error}") from error
    pipes.messages.send(Ready(run_record(config, worker)))
    counter = StreamCounter()
    while (first := _ask(pipes, FIRST)) is not None:
        _stream(config, slot, worker, first, pipes, counter, library_lines)


def _on_slot(config: Config, slot: Slot) -> Config:
    """The config with the slot's device and threads; the process bound to the cores near its GPU."""
    import torch

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
    pipes.messages.send(ModelSettled(model))
    return model


def _stream(
    config: Config,
    slot: Slot,
    worker: Worker,
    first: Shard,
    pipes: Pipes,
    counter: StreamCounter,
    library_lines: Callable[[], int],
) -> None:
    from dali_aesthetic.launch.work import work_shards
    from dali_aesthetic.overlap import every

    def send_heartbeat() -> None:
        try:
            pipes.heartbeats.send(counter.tally())
        except OSError:  # The launcher has gone. A fork server lives on with its children, so that its
            os.kill(os.getpid(), signal.SIGKILL)  # end does not reach them.

    stats = counter.begin()
    reports = work_shards(config, worker, _shards(first, pipes), stats, memory_share=slot.sharers)
    with every(HEARTBEAT_SECONDS, send_heartbeat, "heartbeat"), closing(reports):
        for report in reports:
            pipes.messages.send(report)
    stats.library_lines = library_lines()
    counter.end()
    pipes.heartbeats.send(counter.tally())


def _shards(first: Shard, pipes: Pipes) -> Iterator[Shard]:
    shard: Shard | None = first
    while shard is not None:
        yield shard
        shard = _ask(pipes, NEXT)


def _ask(pipes: Pipes, request: str) -> Any:
    pipes.requests.send(request)
    return pipes.requests.recv()
