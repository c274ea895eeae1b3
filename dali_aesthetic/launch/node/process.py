"""The launcher's side of a worker process: start it, receive its messages, end it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from typing import Any

from dali_aesthetic.config import Config
from dali_aesthetic.launch.node import child
from dali_aesthetic.launch.node.slots import VISIBLE, Slot
from dali_aesthetic.launch.slurm import ALONE, Task
from dali_aesthetic.stats import Tally, tally_of
from dali_aesthetic.types import ShardReport

_PRELOAD = ["dali_aesthetic.launch.work", "dali_aesthetic.launch.precision", "nvidia.dali.fn"]


class WorkerProcess:
    """A running worker on a slot. `tally` is its latest heartbeat, `committed` the sum of its reports."""

    def __init__(self, config: Config, slot: Slot, task: Task = ALONE) -> None:
        # A CPU worker is forked from a server that has the libraries imported: quick to restart, and their
        # pages are shared. CUDA doesn't survive a fork, so a GPU's worker is a new interpreter.
        context: Any = get_context("forkserver" if slot.visible is None else "spawn")
        if slot.visible is None:
            context.set_forkserver_preload(_PRELOAD)
        self.name = slot.name
        self.ready = False
        self.tally, self.committed = Tally(), Tally()
        self.heard_at = time.monotonic()
        (
            (self.requests, requests),
            (self.inbox, messages),
            (self.heartbeats, heartbeats),
            (self.logs, logs),
        ) = (context.Pipe(duplex) for duplex in (True, False, False, False))
        self._pipes = (self.logs, self.inbox, self.heartbeats, self.requests)
        self._process = context.Process(
            target=child.main,
            args=(config, slot, task, child.Pipes(requests, messages, heartbeats, logs)),
            name=slot.name,
            daemon=True,
        )
        with _visible(slot):
            self._process.start()
        for end in (requests, messages, heartbeats, logs):
            end.close()  # else the pipe would stay open when the worker dies

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    @property
    def sources(self) -> list[Any]:
        """Its open pipes and its sentinel, to wait for."""
        pipes = [pipe for pipe in self._pipes if not pipe.closed]
        return [*pipes, self._process.sentinel]

    @property
    def has_ended(self) -> bool:
        return not self._process.is_alive()

    def messages(self) -> Iterator[object]:
        """All messages since the last call, in the order of each pipe."""
        for pipe in self._pipes:
            while (message := _received(pipe)) is not None:
                self.heard_at = time.monotonic()
                if isinstance(message, Tally):
                    self.tally = message
                elif isinstance(message, ShardReport):
                    self.committed += tally_of(message)
                yield message

    def answer(self, shard: object) -> None:
        """Answers a request, with a shard or None: the stream, or all work, ends."""
        self.heard_at = time.monotonic()  # it sent nothing while it waited, however long that was
        with suppress(OSError):  # it has died, and the sentinel tells
            self.requests.send(shard)

    def kill(self) -> None:
        self._process.kill()

    def ask_to_end(self) -> None:
        """Makes it abandon what is open and exit."""
        self.requests.close()
        self._process.terminate()

    def wait(self, timeout: float) -> bool:
        """Whether it has ended within `timeout` seconds."""
        self._process.join(max(0.0, timeout))
        return self.has_ended

    @property
    def why(self) -> str:
        """How it ended, for a message."""
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"with exit code {code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"by {signal.Signals(-code).name}{hint}"

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        self._process.close()

    def committed_tally(self) -> Tally:
        """The counters of a dead worker without the samples that it did not commit: they are done again.

        Which presets those would have met isn't known, so the counts by preset are scaled.
        """
        share = min(1.0, self.committed.num_samples / max(1, self.tally.num_samples))
        return replace(
            self.tally,
            num_samples=self.committed.num_samples,
            num_kept=self.committed.num_kept,
            statuses=self.committed.statuses,
            presets={name: round(count * share) for name, count in self.tally.presets.items()},
        )


def wait_for_any(workers: list[WorkerProcess], timeout: float) -> None:
    """Waits until one of them sends something or ends."""
    connection.wait([source for worker in workers for source in worker.sources], timeout)


@contextmanager
def _visible(slot: Slot) -> Iterator[None]:
    """A process that is started within the block sees the slot's GPU alone, from its first line on.

    Set by the worker itself, the variable would come too late where an import has asked CUDA for devices.
    """
    before = os.environ.get(VISIBLE)
    if slot.visible is not None:
        os.environ[VISIBLE] = slot.visible
    try:
        yield
    finally:
        if slot.visible is not None:
            os.environ.pop(VISIBLE)
            if before is not None:
                os.environ[VISIBLE] = before


def _received(pipe: Connection) -> object | None:
    """The next message in the pipe, or None where there is none or its writer died within one."""
    try:
        return pipe.recv() if not pipe.closed and pipe.poll() else None
    except (EOFError, OSError):
        pipe.close()
        return None
