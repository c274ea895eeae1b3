"""Stages overlap and end with their consumer; calls in threads; the garbage collector of the hot loop."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from dali_aesthetic.overlap import (
    ALLOCATIONS,
    SWITCH_S,
    Backlog,
    OneAtATime,
    ahead,
    beside,
    calm_interpreter,
    every,
    stacks,
)


def test_items_arrive_in_order_from_another_thread() -> None:
    names = []

    def source() -> Iterator[int]:
        for i in range(100):
            names.append(threading.current_thread().name)
            yield i

    assert list(ahead(source(), 3, "stage")) == list(range(100))
    assert set(names) == {"stage"}


def test_the_producer_never_runs_further_ahead_than_its_depth() -> None:
    made = 0

    def source() -> Iterator[int]:
        nonlocal made
        for i in range(50):
            made += 1
            yield i

    for taken, _ in enumerate(ahead(source(), 2, "stage")):
        time.sleep(0.002)
        # Two in the queue, one in the producer's hand, one in ours.
        assert made <= taken + 4


def test_a_failure_arrives_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("gone")

    items = iter(ahead(source(), 5, "stage"))
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="gone"):
        next(items)


def test_leaving_early_stops_the_thread_and_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    for _ in ahead(source(), 2, "early"):
        break
    assert closed.wait(5)
    assert not [thread for thread in threading.enumerate() if thread.name == "early"]


def test_a_chain_of_stages_stops_as_a_whole() -> None:
    def numbers() -> Iterator[int]:
        i = 0
        while True:
            yield (i := i + 1)

    def doubled(source: Iterator[int]) -> Iterator[int]:
        for item in source:
            yield 2 * item

    first = ahead(numbers(), 2, "first")
    for item in ahead(doubled(iter(first)), 2, "second"):
        if item > 20:
            break
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(t.name in ("first", "second") for t in threading.enumerate()):
        time.sleep(0.01)
    assert not [t.name for t in threading.enumerate() if t.name in ("first", "second")]


def test_waiting_times_name_the_slow_side() -> None:
    def quick() -> Iterator[int]:
        yield from range(20)

    stage = ahead(quick(), 1, "stage")
    for _ in stage:
        time.sleep(0.01)
    assert stage.times.items == 20
    assert stage.times.blocked_on_full > 0.1
    assert stage.times.blocked_on_empty < 0.05

    def slow() -> Iterator[int]:
        for i in range(10):
            time.sleep(0.01)
            yield i

    stage = ahead(slow(), 1, "stage")
    assert len(list(stage)) == 10
    assert stage.times.blocked_on_empty > 0.05
    assert stage.times.blocked_on_full < 0.05


def test_every_calls_until_its_block_ends() -> None:
    calls: list[str] = []
    with every(0.01, lambda: calls.append(threading.current_thread().name), "clock"):
        time.sleep(0.2)
    assert set(calls) == {"clock"}
    assert len(calls) >= 3
    count = len(calls)
    time.sleep(0.05)
    assert len(calls) == count


def test_stacks_name_each_thread_and_where_it_is() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="waiting", daemon=True)
    thread.start()
    text = stacks()
    done.set()
    assert "thread waiting:" in text
    assert "thread MainThread:" in text
    assert "test_stacks_name_each_thread_and_where_it_is" in text


def test_a_backlog_gives_results_in_order_and_holds_back_beyond_its_depth() -> None:
    gates = [threading.Event() for _ in range(4)]
    backlog: Backlog[int] = Backlog(2, 2, "test")

    def work(number: int) -> int:
        gates[number].wait(10)
        return number

    assert backlog.add(lambda: work(0)) == []
    gates[1].set()
    assert backlog.add(lambda: work(1)) == []
    time.sleep(0.1)
    assert backlog.take() == [], "the second is done, but not the first"
    threading.Timer(0.1, gates[0].set).start()
    assert backlog.add(lambda: work(2)) in ([0], [0, 1]), "there was no room before"
    gates[2].set()
    assert backlog.take(leave=0)[-1] == 2
    backlog.cancel()


def test_a_failure_in_a_backlog_is_raised_where_its_result_is_taken() -> None:
    def fail() -> int:
        raise OSError("full disk")

    backlog: Backlog[int] = Backlog(9, 1, "test")
    backlog.add(lambda: 1)
    backlog.add(fail)
    with pytest.raises(OSError, match="full disk"):
        backlog.take(leave=0)


def test_a_cancelled_backlog_waits_for_running_calls_and_begins_no_other() -> None:
    gate, began, ended = threading.Event(), list[str](), list[str]()
    backlog: Backlog[None] = Backlog(9, 1, "test")

    def work() -> None:
        gate.wait(10)
        ended.append("first")

    backlog.add(work)
    backlog.add(lambda: began.append("second"))
    threading.Timer(0.1, gate.set).start()
    backlog.cancel()
    assert ended == ["first"]
    assert began == []


def test_calls_beside_a_block_are_made_in_order_and_have_ended_with_it() -> None:
    gate, made = threading.Event(), list[int]()

    def second() -> None:
        gate.wait(10)
        made.append(2)

    with beside(lambda: made.append(1), second, name="test") as begun:
        begun[0].result(10)
        assert made == [1]
        assert any(thread.name.startswith("test") for thread in threading.enumerate())
        gate.set()
    assert made == [1, 2]
    assert not any(thread.name.startswith("test") for thread in threading.enumerate())


def test_a_block_that_fails_ends_the_calls_beside_it() -> None:
    gate, made = threading.Event(), list[int]()

    def first() -> None:
        threading.Timer(0.1, gate.set).start()
        gate.wait(10)
        made.append(1)

    with pytest.raises(OSError, match="no file"), beside(first, lambda: made.append(2), name="test"):
        raise OSError("no file")
    assert made == [1], "what ran has ended, the other was not begun"
    assert not any(thread.name.startswith("test") for thread in threading.enumerate())


def test_the_failure_of_a_call_beside_a_block_is_raised_with_its_result() -> None:
    def fail() -> None:
        raise ImportError("no library")

    with beside(fail, name="test") as begun:
        pass
    with pytest.raises(ImportError, match="no library"):
        begun[0].result()


def test_a_lock_for_one_at_a_time_is_free_once_left() -> None:
    alone = OneAtATime("busy")
    for _ in range(2):
        with alone, pytest.raises(RuntimeError, match="busy"), alone:
            pytest.fail("two are inside")
    with pytest.raises(OSError, match="no file"), alone:
        raise OSError("no file")
    with alone:
        pass


class Node:
    def __init__(self) -> None:
        self.myself = self


@pytest.fixture
def collector_restored() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_the_collector_runs_seldom_in_the_block_and_as_before_after_it(collector_restored: None) -> None:
    before = gc.get_threshold()
    assert gc.get_freeze_count() == 0
    with calm_interpreter():
        assert gc.get_threshold()[0] == ALLOCATIONS
        frozen = gc.get_freeze_count()
        made_since = [Node() for _ in range(1000)]
        with calm_interpreter():  # other threads may free some of the frozen; a second freeze would add these
            assert frozen + len(made_since) > gc.get_freeze_count() > 10_000
        assert gc.get_threshold()[0] == ALLOCATIONS
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_threads_give_way_soon_in_the_block_and_as_before_after_it(collector_restored: None) -> None:
    before = sys.getswitchinterval()
    try:
        for others, inside in ((0.005, SWITCH_S), (0.0001, 0.0001)):
            sys.setswitchinterval(others)
            with calm_interpreter(), calm_interpreter():
                assert sys.getswitchinterval() == pytest.approx(inside, rel=0.05)
            assert sys.getswitchinterval() == pytest.approx(others, rel=0.05)
    finally:
        sys.setswitchinterval(before)


def test_cycles_made_in_a_long_block_are_freed(collector_restored: None) -> None:
    with calm_interpreter():
        first = weakref.ref(Node())
        nodes = 0
        while first() is not None and nodes < 4 * ALLOCATIONS:
            Node()
            nodes += 1
    assert first() is None
    assert nodes <= 2 * ALLOCATIONS


def test_collector_settings_of_others_are_kept(collector_restored: None) -> None:
    gc.set_threshold(0, 10, 10)
    gc.freeze()
    with calm_interpreter():
        assert gc.get_threshold()[0] == 0
    assert gc.get_threshold()[0] == 0
    assert gc.get_freeze_count() > 0


COUNT_PAGE_FAULTS = """
    import resource
    from dali_aesthetic.overlap import calm_interpreter

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        parts = [bytes(bytearray(2 << 20)) for _ in range(8)]
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with calm_interpreter():
        print([faults() for _ in range(4)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_the_memory_of_parts_that_were_read_is_used_again() -> None:
    """In a process of its own, where the allocator has learnt nothing yet. A part of 2 MiB has 512 pages."""
    command = [sys.executable, "-c", textwrap.dedent(COUNT_PAGE_FAULTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 512
