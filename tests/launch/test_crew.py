"""Whom the crew of a node listens to, gives up and takes for hung, with workers that only talk."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from dali_aesthetic.config import Config
from dali_aesthetic.launch.node import crew as crews
from dali_aesthetic.launch.node.child import FIRST, Ready
from dali_aesthetic.launch.node.crew import Crew
from dali_aesthetic.launch.node.process import WorkerProcess
from dali_aesthetic.launch.node.slots import Slot
from dali_aesthetic.stats import Tally
from dali_aesthetic.types import Shard, ShardReport

SLOTS = [Slot(name=f"GPU {i}", visible=None, threads=1, sharers=2) for i in range(2)]
READY = Ready({"identity": {}})


class Worker:
    """A worker without a process: `script` says what it says each time it is listened to; None is its end."""

    why = "by SIGSEGV"

    def __init__(self, slot: Slot, script: list[list[object] | None]) -> None:
        self.slot, self.name, self._script = slot, slot.name, iter(script)
        self.ready = self.has_ended = False
        self.heard_at = time.monotonic()
        self.answers: list[object] = []
        self.asks = self

    def messages(self) -> list[object]:
        said = next(self._script, [])
        self.has_ended = said is None
        return said or []

    def send(self, answer: object) -> None:
        self.answers.append(answer)

    def answer(self, shard: object) -> None:
        WorkerProcess.answer(self, shard)  # type: ignore[arg-type]

    def settled(self) -> Tally:
        return Tally()

    def kill(self) -> None:
        raise AssertionError(f"{self.name} was taken for hung")

    def wait(self, timeout: float) -> bool:
        return True

    def close(self) -> None: ...

    def ask_to_end(self) -> None: ...


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Slot], list[Any]]], Crew]:
    """A crew whose workers say what their slot's script has."""

    def make(script: Callable[[Slot], list[Any]]) -> Crew:
        monkeypatch.setattr(crews, "WorkerProcess", lambda config, slot, task: Worker(slot, script(slot)))
        monkeypatch.setattr(crews, "wait_for_any", lambda workers, timeout: None)
        return Crew(Config(input=("in",), output="out", device="cpu"), SLOTS)

    return make


def shard(name: str) -> Shard:
    return Shard(index=0, name=name, kind="tar", source=f"{name}.tar")


def test_a_gpu_that_is_given_up_before_the_first_worker_is_ready_is_told(
    make: Callable[[Callable[[Slot], list[Any]]], Crew],
) -> None:
    slow_start = itertools.chain([[]] * 10, [[READY, FIRST]])
    with make(lambda slot: list(slow_start) if slot is SLOTS[0] else [None]) as crew:
        crew.first_record([])
        crew.work([])
    assert crew.stats.incidents == [
        *["GPU 1 died by SIGSEGV"] * 3,
        "GPU 1 was given up after 3 deaths in a row",
    ]


def test_a_worker_that_waited_long_for_its_shard_is_not_taken_for_hung(
    make: Callable[[Callable[[Slot], list[Any]]], Crew],
) -> None:
    report = ShardReport(name="a", source="a.tar")
    with make(
        lambda slot: [[READY, FIRST], [], [report, FIRST]] if slot is SLOTS[0] else [[READY, FIRST]]
    ) as crew:
        crew.first_record([])
        (waiting, _) = crew._workers()
        waiting.heard_at -= 10_000
        crew.work([shard("a")])
    assert [one.name for one in crew.stats.reports] == ["a"]
