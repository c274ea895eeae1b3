"""One worker process as the launcher sees it: started, heard, ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    """A running worker on a slot. `tally` is its latest count, `committed` what its reports add up to."""

    def __init__(self, config: Config, slot: Slot, task: Task = ALONE) -> None:
        # A CPU worker is forked from a server that has the libraries imported: quick to restart, and their
        # pages are shared. CUDA doesn't survive a fork, so a GPU's worker is a new interpreter.
        context: Any = get_context("forkserver" if slot.visible is None else "spawn")
        if slot.visible is None:
            context.set_forkserver_preload(_PRELOAD)
        self.slot = slot
        self.ready = False
        self.tally, self.committed = Tally(), Tally()
        self.heard_at = time.monotonic()
        (self.asks, asks), (self.news, news), (self.beats, beats) = (
            context.Pipe(way) for way in (True, False, False)
        )
        self._process = context.Process(
            target=child.main,
            args=(config, slot, task, child.Pipes(asks, news, beats)),
            name=slot.name,
            daemon=True,
        )
        with _visible(slot):
            self._process.start()
        for end in (asks, news, beats):
            end.close()  # else the pipe would stay open when the worker dies

    @property
    def name(self) -> str:
        """Its slot's."""
        return self.slot.name

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    @property
    def sources(self) -> list[Any]:
        """What to wait for: its pipes and its end."""
        pipes = [pipe for pipe in (self.asks, self.news, self.beats) if not pipe.closed]
        return [*pipes, self._process.sentinel]

    @property
    def has_ended(self) -> bool:
        return not self._process.is_alive()

    def messages(self) -> Iterator[object]:
        """All that it has said since, in the order of each pipe."""
        for pipe in (self.news, self.beats, self.asks):
            while (message := _received(pipe)) is not None:
                self.heard_at = time.monotonic()
                if isinstance(message, Tally):
                    self.tally = message
                elif isinstance(message, ShardReport):
                    self.committed += tally_of(message)
                yield message

    def answer(self, shard: object) -> None:
        """Gives it a shard, or None: no more of this stream, or at all."""
        self.heard_at = time.monotonic()  # it said nothing while it waited, however long that was
        with suppress(OSError):  # it has died, which its end tells
            self.asks.send(shard)

    def kill(self) -> None:
        self._process.kill()

    def ask_to_end(self) -> None:
        """It abandons what is open and exits."""
        self.asks.close()
        self._process.terminate()

    def wait(self, timeout: float) -> bool:
        """Whether it has ended within `timeout` seconds."""
        self._process.join(max(0.0, timeout))
        return self.has_ended

    @property
    def why(self) -> str:
        """How it ended."""
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"with exit code {code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"by {signal.Signals(-code).name}{hint}"

    def close(self) -> None:
        for pipe in (self.asks, self.news, self.beats):
            pipe.close()
        self._process.close()

    def settled(self) -> Tally:
        """What counts of a worker that died: what it committed, the rest is done again.

        Which presets the lost samples would have met isn't known: those counts are scaled.
        """
        share = min(1.0, self.committed.num_samples / max(1, self.tally.num_samples))
        presets = {name: round(count * share) for name, count in self.tally.presets.items()}
        return Tally(
            num_samples=self.committed.num_samples,
            num_kept=self.committed.num_kept,
            statuses=self.committed.statuses,
            presets=presets,
            work=self.tally.work,
            waits=self.tally.waits,
            seconds=self.tally.seconds,
        )


def wait_for_any(workers: list[WorkerProcess], timeout: float) -> None:
    """Until one of them says something or ends."""
    connection.wait([source for worker in workers for source in worker.sources], timeout)


@contextmanager
def _visible(slot: Slot) -> Iterator[None]:
    """What is started within the block sees the slot's GPU alone, from its first line on.

    Set by the worker itself it would come too late where an import has asked CUDA for its devices.
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
    """What lies in the pipe, or None; also where its writer died within a message."""
    try:
        return pipe.recv() if not pipe.closed and pipe.poll() else None
    except (EOFError, OSError):
        pipe.close()
        return None
