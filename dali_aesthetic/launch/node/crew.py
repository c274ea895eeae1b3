"""The workers of a node: listened to, given shards as they ask, replaced where they die."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dali_aesthetic.config import Config, ConfigError, ModelConfig
from dali_aesthetic.launch.node.child import FIRST, MODEL, NEXT, Broken, Ready, Settled
from dali_aesthetic.launch.node.process import WorkerProcess, wait_for_any
from dali_aesthetic.launch.node.slots import Slot
from dali_aesthetic.launch.slurm import ALONE, Task
from dali_aesthetic.stats import RunStats, Tally
from dali_aesthetic.types import Shard, ShardReport

_DEATHS_IN_A_ROW = 10
"""Without a shard committed in between: then the slot is given up. A few shards that kill stay below it."""
_FAILED_STARTS_IN_A_ROW = 3
_SILENCE_SECONDS = 60.0
"""Beyond the stall timeout: the worker's own guard comes first, it can say where it hangs."""
_END_SECONDS = 20.0
_SHARDS_TO_SETTLE_ON = 1000
"""They hold more images than settling the precision takes, and are few enough to send."""


class AllWorkersLost(RuntimeError):
    """No slot is left on which a worker stays alive."""


@dataclass(slots=True)
class _Place:
    """A slot, its worker (None: given up), what its earlier workers settled, and their deaths in a row."""

    slot: Slot
    worker: WorkerProcess | None = None
    settled: Tally = field(default_factory=Tally)
    deaths: int = 0
    last_words: str = ""


class Crew:
    """The workers from the first start to the last end, and what they did: `stats`. A context manager."""

    def __init__(self, config: Config, slots: Sequence[Slot], task: Task = ALONE) -> None:
        self.stats = RunStats()
        self._config, self._task = config, task
        self._record: dict[str, Any] | None = None
        self._handout: Handout | None = None
        self._places = [_Place(slot) for slot in slots]
        self._first_shards: list[Shard] = []
        self._model: ModelConfig | None = None
        self._settler: WorkerProcess | None = None
        self._asking_model: list[WorkerProcess] = []
        self._waiting: list[WorkerProcess] = []

    def __enter__(self) -> Crew:
        try:
            for place in self._places:
                place.worker = WorkerProcess(self._config, place.slot, self._task)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def first_record(self, shards: Sequence[Shard]) -> dict[str, Any]:
        """Waits for the first worker to be ready; what it says `run.json` should hold.

        The first one to ask settles the precision for all, on the first of `shards`. Raises what kept workers
        from starting: ConfigError, WeightsUnavailable, OSError.
        """
        self._first_shards = list(shards[:_SHARDS_TO_SETTLE_ON])
        while self._record is None:
            self._step()
        self.stats = RunStats(incidents=self.stats.incidents)  # the clock starts here, as for one process
        return self._record

    def work(self, shards: Sequence[Shard]) -> None:
        """Until every shard is reported. Raises `AllWorkersLost`, and OSError for an unwritable output."""
        self._handout = Handout(shards)
        self.stats.workers = {place.slot.name: Tally() for place in self._places}
        while not (self._handout.finished and self._all_idle()):
            self._serve_waiting(self._handout)
            self._step()
        self.stats.finish()

    def _workers(self) -> list[WorkerProcess]:
        return [place.worker for place in self._places if place.worker is not None]

    def _all_idle(self) -> bool:
        return all(worker in self._waiting or not worker.ready for worker in self._workers())

    def _serve_waiting(self, handout: Handout) -> None:
        is_only = sum(worker.ready for worker in self._workers()) == 1
        for worker in list(self._waiting):
            shard = handout.first(worker.name, is_only=is_only)
            if shard is not None:
                self._waiting.remove(worker)
                worker.answer(shard)

    def _serve_model(self) -> None:
        """To those who ask for the model section; the first one is asked to settle it meanwhile."""
        while self._asking_model and (self._model is not None or self._settler is None):
            worker = self._asking_model.pop()
            if self._model is None:
                self._settler = worker
            worker.answer(self._model or self._first_shards)

    def _step(self) -> None:
        workers = self._workers()
        if not workers:
            raise AllWorkersLost("no worker stays alive:\n  " + "\n  ".join(self.stats.incidents[-5:]))
        self._serve_model()
        wait_for_any(workers, 1.0)
        for place in self._places:
            if place.worker is not None:
                self._listen(place, place.worker)

    def _listen(self, place: _Place, worker: WorkerProcess) -> None:
        has_ended = worker.has_ended  # looked at first: what it said before its end is then all there
        for message in worker.messages():
            self._take(place, worker, message)
        if has_ended:
            self._bury(place, worker)
        elif self._is_silent(worker):
            place.last_words = f"was silent for {time.monotonic() - worker.heard_at:.0f} s and was ended"
            worker.kill()

    def _take(self, place: _Place, worker: WorkerProcess, message: object) -> None:
        if isinstance(message, Ready):
            self._check_same(worker, message.record)
            worker.ready = True
        elif isinstance(message, Broken):
            if message.fatal is not None:
                raise message.fatal
            place.last_words = f"ended by {message.text}"
        elif isinstance(message, Tally):
            self.stats.set_worker(worker.name, place.settled + message)
        elif isinstance(message, ShardReport):
            self._note(place, worker, message)
        elif isinstance(message, Settled):
            self._model = message.model
        elif message == MODEL:
            self._asking_model.append(worker)
        elif message == FIRST:
            self._waiting.append(worker)
        elif message == NEXT:
            assert self._handout is not None, "it was given a first shard"
            worker.answer(self._handout.next(worker.name))

    def _note(self, place: _Place, worker: WorkerProcess, report: ShardReport) -> None:
        assert self._handout is not None
        self._handout.done(worker.name, report)
        self.stats.reports.append(report)
        place.deaths = 0

    def _check_same(self, worker: WorkerProcess, record: dict[str, Any]) -> None:
        """Raises ConfigError where a GPU of another kind would give other scores."""
        if self._record is None:
            self._record = record
        ours, first = record["identity"], self._record["identity"]
        if other := sorted(name for name in ours if ours[name] != first.get(name)):
            listed = ", ".join(f"{name}: {ours[name]!r}, not {first.get(name)!r}" for name in other)
            raise ConfigError(
                f"{worker.name} would run with another {listed}: leave it out (CUDA_VISIBLE_DEVICES), or "
                "give --backend and --precision that all of the GPUs have"
            )

    def _is_silent(self, worker: WorkerProcess) -> bool:
        timeout = self._config.guard.stall_timeout
        busy = worker.ready and worker not in self._waiting
        return busy and timeout > 0 and time.monotonic() - worker.heard_at > timeout + _SILENCE_SECONDS

    def _bury(self, place: _Place, worker: WorkerProcess) -> None:
        """Settle what it did, take back what it had open, start another one in its place."""
        why = place.last_words or f"died {worker.why}"
        place.last_words = ""
        place.settled += worker.settled()
        place.deaths += 1
        redone = 0
        if self._handout is not None:
            self.stats.set_worker(worker.name, place.settled)
            given_up, redone = self._handout.died(worker.name, why)
            self.stats.reports += given_up
        self.stats.incidents.append(f"{worker.name} {why}" + (f"; redone: {redone} shards" if redone else ""))
        self._waiting = [other for other in self._waiting if other is not worker]
        self._asking_model = [other for other in self._asking_model if other is not worker]
        self._settler = None if self._settler is worker else self._settler
        most = _DEATHS_IN_A_ROW if worker.ready else _FAILED_STARTS_IN_A_ROW
        worker.close()
        place.worker = None
        if place.deaths >= most:
            self.stats.incidents.append(
                f"{place.slot.name} was given up after {place.deaths} deaths in a row"
            )
        elif self._handout is None or not self._handout.finished:
            place.worker = WorkerProcess(self._config, place.slot, self._task)

    def _end(self) -> None:
        """Every worker ends: those that wait for a shard at once, others abandon what they have open."""
        workers, deadline = self._workers(), time.monotonic() + _END_SECONDS
        for worker in workers:
            if worker in self._waiting:
                worker.answer(None)
            else:
                worker.ask_to_end()
        for worker in workers:
            if not worker.wait(deadline - time.monotonic()):
                worker.kill()
                worker.wait(_END_SECONDS)
            worker.close()
        for place in self._places:
            place.worker = None


# FOLDED dali_aesthetic/launch/handout.py: Which worker does which shard: handed out one by one as workers ask, and again where a worker died.
#
# A worker reads ahead, so several shards are open in it when it dies, and which of them did it can't be told.
# Each of them becomes a suspect and is done again alone, in a stream of its own. A shard that was there
# `MOST_DEATHS` times is given up.


MOST_DEATHS = 3


class Handout:
    """Shards still to do, those open in each worker, and the suspects."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._fresh: Iterator[Shard] = iter(shards)
        self._next: Shard | None = next(self._fresh, None)
        self._suspects: list[tuple[Shard, str]] = []
        self._deaths: dict[str, int] = {}
        self._open: dict[str, dict[str, Shard]] = {}
        self._alone: set[str] = set()

    @property
    def finished(self) -> bool:
        """Whether every shard was reported or given up."""
        return not (self._next or self._suspects or any(self._open.values()))

    def first(self, worker: str, *, is_only: bool = True) -> Shard | None:
        """The first shard of a stream; None where there is none now (more may come back from the dead).

        A suspect goes to another worker than the one that died over it, unless that `is_only`: it may have
        been the GPU's fault.
        """
        for index, (shard, died_in) in enumerate(self._suspects):
            if died_in != worker or is_only:
                del self._suspects[index]
                self._alone.add(worker)
                return self._give(worker, shard)
        self._alone.discard(worker)
        return self._give_fresh(worker)

    def next(self, worker: str) -> Shard | None:
        """The next one of the stream; None ends it, so that what is open in it gets committed."""
        return None if worker in self._alone else self._give_fresh(worker)

    def done(self, worker: str, report: ShardReport) -> None:
        """A shard of the worker was committed, or given up by the worker itself."""
        self._open[worker].pop(report.name, None)

    def died(self, worker: str, why: str) -> tuple[list[ShardReport], int]:
        """Takes back what was open in the worker: reports of those given up, and the number of others."""
        given_up = []
        taken_back = self._open.pop(worker, {})
        for shard in taken_back.values():
            deaths = self._deaths[shard.name] = self._deaths.get(shard.name, 0) + 1
            if deaths < MOST_DEATHS:
                self._suspects.append((shard, worker))
                continue
            error = f"a worker died over it {deaths} times; the last one {why}"
            given_up.append(ShardReport(name=shard.name, source=shard.source, error=error))
        return given_up, len(taken_back) - len(given_up)

    def _give_fresh(self, worker: str) -> Shard | None:
        shard = self._next
        if shard is None:
            return None
        self._next = next(self._fresh, None)
        return self._give(worker, shard)

    def _give(self, worker: str, shard: Shard) -> Shard:
        self._open.setdefault(worker, {})[shard.name] = shard
        return shard
