"""The crew of a node replaces, gives up and waits for scripted workers; its queue hands out their shards."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from dali_aesthetic.config import Config
from dali_aesthetic.launch.node import crew as crews
from dali_aesthetic.launch.node.child import FIRST, Logged, Ready
from dali_aesthetic.launch.node.crew import Crew, ShardQueue
from dali_aesthetic.launch.node.process import WorkerProcess
from dali_aesthetic.launch.node.slots import Slot
from dali_aesthetic.stats import RunStats, Tally
from dali_aesthetic.types import Shard, ShardReport

SLOTS = [Slot(name=f"GPU {i}", visible=None, threads=1, sharers=2) for i in range(2)]
READY = Ready({"identity": {}})


class Worker:
    """A worker without a process: it sends the messages of `script`, one list a call; None is its end."""

    why = "by SIGSEGV"

    def __init__(self, slot: Slot, script: list[list[object] | None]) -> None:
        self.slot, self.name, self._script = slot, slot.name, iter(script)
        self.ready = self.has_ended = False
        self.heard_at = time.monotonic()
        self.answers: list[object] = []
        self.requests = self

    def messages(self) -> list[object]:
        messages = next(self._script, [])
        self.has_ended = messages is None
        return messages or []

    def send(self, answer: object) -> None:
        self.answers.append(answer)

    def answer(self, shard: object) -> None:
        WorkerProcess.answer(self, shard)  # type: ignore[arg-type]

    def committed_tally(self) -> Tally:
        return Tally()

    def kill(self) -> None:
        raise AssertionError(f"{self.name} was taken for hung")

    def wait(self, timeout: float) -> bool:
        return True

    def close(self) -> None: ...

    def ask_to_end(self) -> None: ...


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Slot], list[Any]]], Crew]:
    """A crew whose workers follow their slot's script."""

    def make(script: Callable[[Slot], list[Any]]) -> Crew:
        monkeypatch.setattr(crews, "WorkerProcess", lambda config, slot, task: Worker(slot, script(slot)))
        monkeypatch.setattr(crews, "wait_for_any", lambda workers, timeout: None)
        return Crew(Config(input=("in",), output="out", device="cpu"), SLOTS)

    return make


def shard(name: str) -> Shard:
    return Shard(index=0, name=name, kind="tar", source=f"{name}.tar")


def test_a_slot_given_up_before_the_first_worker_is_ready_is_an_incident(
    make: Callable[[Callable[[Slot], list[Any]]], Crew],
) -> None:
    slow_start = itertools.chain([[]] * 10, [[READY, FIRST]])
    with make(lambda slot: list(slow_start) if slot is SLOTS[0] else [None]) as crew:
        crew.first_record([])
        stats = RunStats()
        crew.work([], stats)
    assert stats.incidents == [
        *["GPU 1 died by SIGSEGV"] * 3,
        "GPU 1 was given up after 3 deaths in a row",
    ]


def test_a_worker_that_waited_long_for_its_shard_does_not_count_as_hung(
    make: Callable[[Callable[[Slot], list[Any]]], Crew],
) -> None:
    report = ShardReport(name="a", source="a.tar")
    with make(
        lambda slot: [[READY, FIRST], [], [report, FIRST]] if slot is SLOTS[0] else [[READY, FIRST]]
    ) as crew:
        crew.first_record([])
        stats = RunStats()
        (waiting, _) = crew._workers()
        waiting.heard_at -= 10_000
        crew.work([shard("a")], stats)
    assert [one.name for one in stats.reports] == ["a"]


def shards(count: int) -> list[Shard]:
    return [Shard(index=i, name=f"{i}", kind="tar", source=f"{i}.tar") for i in range(count)]


def name(shard: Shard | None) -> str | None:
    return shard and shard.name


def done(queue: ShardQueue, worker: str, shard: str) -> None:
    queue.done(worker, ShardReport(name=shard, source=""))


def test_what_workers_log_is_the_launchers_once(
    make: Callable[[Callable[[Slot], list[Any]]], Crew], caplog: pytest.LogCaptureFixture
) -> None:
    logged = [Logged("dali_aesthetic.score.weights", logging.WARNING, text) for text in ("odd", "100% odd")]
    with caplog.at_level(logging.INFO), make(lambda slot: [logged, [READY]]) as crew:
        crew.first_record([])
    told = [(one.name, one.levelname, one.getMessage()) for one in caplog.records]
    name = "dali_aesthetic.score.weights"
    assert told == [(name, "WARNING", "GPU 0: odd"), (name, "WARNING", "GPU 0: 100% odd")]


def test_shards_go_to_the_workers_in_the_order_they_ask() -> None:
    queue = ShardQueue(shards(3))
    assert (name(queue.first("a")), name(queue.first("b")), name(queue.next("a"))) == ("0", "1", "2")
    assert queue.next("b") is None
    for worker, shard in (("a", "0"), ("b", "1")):
        done(queue, worker, shard)
    assert not queue.finished
    done(queue, "a", "2")
    assert queue.finished
    assert queue.first("a") is None


def test_shards_open_in_a_dead_worker_are_redone_each_in_its_own_stream() -> None:
    queue = ShardQueue(shards(4))
    queue.first("a")
    queue.next("a")
    assert queue.take_back("a", "by SIGKILL") == ([], 2)
    assert name(queue.first("a")) == "0"
    assert queue.next("a") is None, "a suspect has a stream of its own"
    done(queue, "a", "0")
    assert name(queue.first("a")) == "1"
    done(queue, "a", "1")
    assert [name(queue.first("a")), name(queue.next("a")), name(queue.next("a"))] == ["2", "3", None]


def test_a_shard_is_given_up_at_its_third_death_and_no_other_is() -> None:
    queue = ShardQueue(shards(3))
    queue.first("a")
    queue.next("a")
    queue.take_back("a", "by SIGSEGV")
    for _ in range(1):
        assert name(queue.first("a")) == "0"
        assert queue.take_back("a", "by SIGSEGV") == ([], 1)
    assert name(queue.first("a")) == "1", "the other suspect comes first now"
    done(queue, "a", "1")
    assert name(queue.first("a")) == "0"
    (report,), again = queue.take_back("a", "by SIGSEGV")
    assert (report.name, report.source, again) == ("0", "0.tar", 0)
    assert "died over it 3 times; the last one by SIGSEGV" in report.error
    assert name(queue.first("a")) == "2"
    done(queue, "a", "2")
    assert queue.finished


def test_a_suspect_goes_to_another_worker_where_there_is_one() -> None:
    queue = ShardQueue(shards(2))
    queue.first("a")
    queue.take_back("a", "")
    assert name(queue.first("a", is_only=False)) == "1"
    assert name(queue.first("b", is_only=False)) == "0"
