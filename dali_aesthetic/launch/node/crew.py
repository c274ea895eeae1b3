"""The engine of one node: worker processes that get shards as they ask for them and are replaced if they die.

A worker reads ahead, so several shards are open in it when it dies, and which of them did it can't be told.
Each of them becomes a suspect and is done again alone, in a stream of its own. A shard that was open
`MOST_DEATHS` times is given up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dali_aesthetic.config import Config, ModelConfig
from dali_aesthetic.launch.engine import Prepared
from dali_aesthetic.launch.node.child import FIRST, MODEL, NEXT, Failed, Logged, ModelSettled, Ready
from dali_aesthetic.launch.node.process import WorkerProcess, wait_for_any
from dali_aesthetic.launch.node.slots import Slot, find_slots
from dali_aesthetic.launch.slurm import ALONE, Task
from dali_aesthetic.launch.work import check_same_run, given_up
from dali_aesthetic.layout import IDENTITY
from dali_aesthetic.stats import RunStats, Tally
from dali_aesthetic.types import Shard, ShardReport

_LOG = logging.getLogger(__name__)
_MOST_DEATHS_IN_A_ROW = 10
"""Without a shard committed in between: then the slot is given up. A few shards that kill stay below it."""
_MOST_FAILED_STARTS_IN_A_ROW = 3
_SILENCE_SECONDS = 60.0
"""Beyond the stall timeout: the worker's own guard comes first, it can say where it hangs."""
_END_SECONDS = 20.0
_SHARDS_TO_SETTLE_ON = 1000
"""They hold more images than settling the precision takes, and are few enough to send."""


@contextmanager
def node_processes(config: Config, shards: Sequence[Shard], task: Task) -> Iterator[Prepared]:
    """The engine of a node: the workers that `config.launch` asks for; this process touches no image.

    Raises ConfigError where the node has too few GPUs, and `AllWorkersLost`.
    """
    slots = find_slots(config)
    _LOG.info("loading %s in %d processes", config.model.encoder, len(slots))
    with Crew(config, slots, task) as crew:
        yield Prepared(config=config, record=crew.first_record(shards), work=crew.work)


class AllWorkersLost(RuntimeError):
    """No slot is left on which a worker stays alive."""


@dataclass(slots=True)
class _Place:
    """A slot, its worker (None: given up), the counters of its earlier workers, and their deaths in a row."""

    slot: Slot
    worker: WorkerProcess | None = None
    committed: Tally = field(default_factory=Tally)
    deaths: int = 0
    reason: str = ""


class Crew:
    """The workers from the first start to the last end. A context manager."""

    def __init__(self, config: Config, slots: Sequence[Slot], task: Task = ALONE) -> None:
        self._config, self._task = config, task
        self._stats = RunStats()
        self._record: dict[str, Any] | None = None
        self._queue: ShardQueue | None = None
        self._places = [_Place(slot) for slot in slots]
        self._first_shards: list[Shard] = []
        self._model: ModelConfig | None = None
        self._model_settler: WorkerProcess | None = None
        self._logged: set[Logged] = set()
        self._waiting_for_model: list[WorkerProcess] = []
        self._waiting_for_shard: list[WorkerProcess] = []

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
        """Waits for the first worker to be ready, and returns the content of `run.json` that it sent.

        The first one to ask settles the precision for all, on the first of `shards`. Raises what kept workers
        from starting: ConfigError, WeightsUnavailable, OSError.
        """
        self._first_shards = list(shards[:_SHARDS_TO_SETTLE_ON])
        while self._record is None:
            self._step()
        return self._record

    def work(self, shards: Sequence[Shard], stats: RunStats) -> None:
        """Until every shard is reported. Raises `AllWorkersLost`, and OSError for an unwritable output."""
        stats.incidents += self._stats.incidents  # from the start
        stats.workers = {place.slot.name: Tally() for place in self._places}
        self._stats, self._queue = stats, ShardQueue(shards)
        while not self._queue.finished or any(map(self._is_busy, self._workers())):
            self._begin_streams(self._queue)
            self._step()
        stats.finish()

    def _workers(self) -> list[WorkerProcess]:
        return [place.worker for place in self._places if place.worker is not None]

    def _is_busy(self, worker: WorkerProcess) -> bool:
        return worker.ready and worker not in self._waiting_for_shard

    def _begin_streams(self, queue: ShardQueue) -> None:
        is_only = sum(worker.ready for worker in self._workers()) == 1
        for worker in list(self._waiting_for_shard):
            shard = queue.first(worker.name, is_only=is_only)
            if shard is not None:
                self._waiting_for_shard.remove(worker)
                worker.answer(shard)

    def _send_model(self) -> None:
        """Answers requests for the model section; the first worker to ask settles it meanwhile."""
        while self._waiting_for_model and (self._model is not None or self._model_settler is None):
            worker = self._waiting_for_model.pop()
            if self._model is None:
                self._model_settler = worker
            worker.answer(self._model or self._first_shards)

    def _step(self) -> None:
        workers = self._workers()
        if not workers:
            raise AllWorkersLost("no worker stays alive:\n  " + "\n  ".join(self._stats.incidents[-5:]))
        self._send_model()
        wait_for_any(workers, 1.0)
        for place in self._places:
            if place.worker is not None:
                self._receive(place, place.worker)

    def _receive(self, place: _Place, worker: WorkerProcess) -> None:
        has_ended = worker.has_ended  # looked at first: all that it sent before its end is then in the pipes
        for message in worker.messages():
            self._handle(place, worker, message)
        if has_ended:
            self._replace(place, worker)
        elif self._is_silent(worker):
            place.reason = f"was silent for {time.monotonic() - worker.heard_at:.0f} s and was ended"
            worker.kill()

    def _handle(self, place: _Place, worker: WorkerProcess, message: object) -> None:
        if isinstance(message, Ready):
            self._check_record(worker, message.record)
            worker.ready = True
        elif isinstance(message, Failed):
            if message.fatal is not None:
                raise message.fatal
            place.reason = f"ended by {message.text}"
        elif isinstance(message, Tally):
            self._stats.set_worker(worker.name, place.committed + message)
        elif isinstance(message, ShardReport):
            self._add_report(place, worker, message)
        elif isinstance(message, Logged):
            if message not in self._logged:  # once where several workers say the same
                self._logged.add(message)
                text = f"{worker.name}: {message.text}"
                logging.getLogger(message.logger).log(message.level, "%s", text)
        elif isinstance(message, ModelSettled):
            self._model = message.model
        elif message == MODEL:
            self._waiting_for_model.append(worker)
        elif message == FIRST:
            self._waiting_for_shard.append(worker)
        elif message == NEXT:
            assert self._queue is not None, "it was given a first shard"
            worker.answer(self._queue.next(worker.name))

    def _add_report(self, place: _Place, worker: WorkerProcess, report: ShardReport) -> None:
        assert self._queue is not None
        self._queue.done(worker.name, report)
        self._stats.reports.append(report)
        place.deaths = 0

    def _check_record(self, worker: WorkerProcess, record: dict[str, Any]) -> None:
        if self._record is None:
            self._record = record
        fix = (
            "leave it out (CUDA_VISIBLE_DEVICES), or give --backend and --precision that all of the GPUs have"
        )
        check_same_run(worker.name, record[IDENTITY], self._record[IDENTITY], fix)

    def _is_silent(self, worker: WorkerProcess) -> bool:
        timeout, silence = self._config.guard.stall_timeout, time.monotonic() - worker.heard_at
        return self._is_busy(worker) and 0 < timeout < silence - _SILENCE_SECONDS

    def _replace(self, place: _Place, worker: WorkerProcess) -> None:
        """Counts what a dead worker committed, takes back its open shards and starts another in its place."""
        why = place.reason or f"died {worker.why}"
        place.reason = ""
        place.committed += worker.committed_tally()
        place.deaths += 1
        num_redone = self._take_back(place, worker, why)
        redone = f"; redone: {num_redone} shards" if num_redone else ""
        self._stats.incidents.append(f"{worker.name} {why}{redone}")
        self._waiting_for_shard = [other for other in self._waiting_for_shard if other is not worker]
        self._waiting_for_model = [other for other in self._waiting_for_model if other is not worker]
        self._model_settler = None if self._model_settler is worker else self._model_settler
        most = _MOST_DEATHS_IN_A_ROW if worker.ready else _MOST_FAILED_STARTS_IN_A_ROW
        worker.close()
        place.worker = None
        if place.deaths >= most:
            self._stats.incidents.append(
                f"{place.slot.name} was given up after {place.deaths} deaths in a row"
            )
        elif self._queue is None or not self._queue.finished:
            place.worker = WorkerProcess(self._config, place.slot, self._task)

    def _take_back(self, place: _Place, worker: WorkerProcess, why: str) -> int:
        """The number of its open shards that will be done again."""
        if self._queue is None:
            return 0
        self._stats.set_worker(worker.name, place.committed)
        reports, num_redone = self._queue.take_back(worker.name, why)
        self._stats.reports += reports
        return num_redone

    def _end(self) -> None:
        """Ends every worker: those that wait for a shard at once, others abandon what they have open."""
        workers, deadline = self._workers(), time.monotonic() + _END_SECONDS
        for worker in workers:
            if worker in self._waiting_for_shard:
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


class ShardQueue:
    """Hands shards to workers: those still to do, the ones open in each worker, and the suspects."""

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
        """The first shard of a stream; None where there is none now (a death may bring some back).

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
        """The next shard of the stream; None ends it, so that what is open in it gets committed."""
        return None if worker in self._alone else self._give_fresh(worker)

    def done(self, worker: str, report: ShardReport) -> None:
        """A shard of the worker was committed, or given up by the worker itself."""
        self._open[worker].pop(report.name, None)

    def take_back(self, worker: str, why: str) -> tuple[list[ShardReport], int]:
        """Takes back a dead worker's open shards: reports of the given up, and the number of the others."""
        reports: list[ShardReport] = []
        taken_back = self._open.pop(worker, {})
        for shard in taken_back.values():
            deaths = self._deaths[shard.name] = self._deaths.get(shard.name, 0) + 1
            if report := given_up(shard, deaths, why):
                reports.append(report)
            else:
                self._suspects.append((shard, worker))
        return reports, len(taken_back) - len(reports)

    def _give_fresh(self, worker: str) -> Shard | None:
        shard = self._next
        if shard is None:
            return None
        self._next = next(self._fresh, None)
        return self._give(worker, shard)

    def _give(self, worker: str, shard: Shard) -> Shard:
        self._open.setdefault(worker, {})[shard.name] = shard
        return shard
