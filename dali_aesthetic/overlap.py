"""Overlap of stages: every Python thread of the package starts here.

`ahead` runs an iterator in a thread of its own with a bounded queue behind it, so that stages written
as plain generators overlap. The time each side spends blocked on the queue names the bottleneck without
a profiler (the idea of spdl's StatsQueue): a producer that waits is faster than what follows it.
"""

from __future__ import annotations

import gc
import os
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Generic, TypeVar

T = TypeVar("T")
ALLOCATIONS = 50_000
"""Net new containers between two collections of the young generation; Python's default is 700."""
_KEPT_BYTES = (32 << 20) - (64 << 10)
"""Once a block of this size was freed, glibc keeps memory for blocks of up to that size, the largest it
learns. Until then the parts of a tar come from the kernel and go back: 5 page faults a sample, a tenth of its
CPU time."""
SWITCH_S = 0.0005
"""Seconds until a thread that runs Python gives way to another; Python's default is 0.005. A decoder's thread
needs the interpreter for microseconds between its calls into C, and waited for the scan's each time."""
_num_inside = 0
_before: tuple[tuple[int, int, int], int, float] = ((0, 0, 0), 0, 0.0)


@dataclass(slots=True)
class StageTimes:
    """Seconds that a stage's thread was blocked on a full queue, and its consumer on an empty one.

    `first_at` is when the first item was ready. The three moments are `perf_counter`'s, 0 before they come.
    """

    name: str
    items: int = 0
    blocked_on_full: float = 0.0
    blocked_on_empty: float = 0.0
    started_at: float = 0.0
    first_at: float = 0.0
    ended_at: float = 0.0


class _End:
    """The end of the queue, behind the last item. Carries the failure of the source, if there was one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Ahead(Generic[T]):
    """Iterates over `source` at most `depth` items ahead of its consumer, in a daemon thread.

    A failure of the source is raised in the consumer, after the items that came before it. Leaving the
    loop early, or `close()`, stops the thread at its next item. Iterate once. A source that may wait for its
    next item for ever gets `patience`: after so many seconds its thread is left to itself.
    """

    def __init__(
        self, source: Iterable[T], depth: int, name: str, patience: float = threading.TIMEOUT_MAX
    ) -> None:
        self.times = StageTimes(name)
        self._patience = patience
        self._source = source
        self._queue: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._produce, name=name, daemon=True)

    def __iter__(self) -> Iterator[T]:
        self._thread.start()
        try:
            while True:
                item = self._take()
                if isinstance(item, _End):
                    if item.error is not None:
                        raise item.error
                    return
                yield item
                del item
        finally:
            self.close()

    def close(self) -> None:
        """Stop the thread and wait for it, if not for ever. The source's own clean-up runs in its thread."""
        self._stopped.set()
        end = time.monotonic() + self._patience
        while self._thread.is_alive() and time.monotonic() < end:
            self._drain()
            self._thread.join(timeout=0.05)

    def _take(self) -> T | _End:
        start = time.perf_counter()
        item = self._queue.get()
        self.times.blocked_on_empty += time.perf_counter() - start
        return item

    def _drain(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()

    def _produce(self) -> None:
        self.times.started_at = time.perf_counter()
        error: BaseException | None = None
        iterator = iter(self._source)
        try:
            for item in iterator:
                self.times.first_at = self.times.first_at or time.perf_counter()
                if not self._put(item):
                    break
                self.times.items += 1
        except BaseException as failure:  # passed on, not handled: the consumer raises it
            error = failure
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
            self.times.ended_at = time.perf_counter()
            self._put(_End(error))

    def _put(self, item: T | _End) -> bool:
        """False if the consumer has gone."""
        start = time.perf_counter()
        try:
            while not self._stopped.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False
        finally:
            self.times.blocked_on_full += time.perf_counter() - start


def ahead(source: Iterable[T], depth: int, name: str, patience: float = threading.TIMEOUT_MAX) -> Ahead[T]:
    """`source`, produced up to `depth` items ahead in a thread called `name`; see `Ahead`."""
    return Ahead(source, depth, name, patience)


class Backlog(Generic[T]):
    """Runs calls in the order they are added, in `num_threads` threads, at most `depth` of them unfinished.

    Results come back in that order too. A call's failure is raised to the caller that takes its result, and
    later calls that have not begun are dropped.
    """

    def __init__(self, depth: int, num_threads: int, name: str) -> None:
        self._depth = depth
        self._pool = ThreadPoolExecutor(max_workers=num_threads, thread_name_prefix=name)
        self._calls: deque[Future[T]] = deque()

    def add(self, call: Callable[[], T]) -> list[T]:
        """Waits for room and queues `call`. Returns the results that are ready."""
        done = self.take(leave=self._depth - 1)
        self._calls.append(self._pool.submit(call))
        return done

    def take(self, leave: int | None = None) -> list[T]:
        """The results that are ready, after waiting until at most `leave` calls are unfinished."""
        done = []
        most = len(self._calls) if leave is None else leave
        try:
            while self._calls and (len(self._calls) > most or self._calls[0].done()):
                done.append(self._calls.popleft().result())
        except BaseException:
            self.cancel()
            raise
        return done

    def cancel(self) -> None:
        """Drops calls that have not begun, waits for the others, and ends the threads. Results are lost."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._calls.clear()


def pool(num_threads: int, name: str) -> Executor:
    """Threads for work that arrives in pieces and releases the interpreter lock (decoding by Pillow)."""
    return ThreadPoolExecutor(max_workers=num_threads, thread_name_prefix=name)


@contextmanager
def beside(*calls: Callable[[], T], name: str) -> Iterator[list[Future[T]]]:
    """Makes `calls` one after another in a thread beside the block, and waits for it at the end.

    A call's failure is raised where its result is asked for. Where the block fails, calls that have not
    begun are dropped.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
    begun = [thread.submit(call) for call in calls]
    try:
        yield begun
    except BaseException:
        thread.shutdown(wait=True, cancel_futures=True)
        raise
    thread.shutdown(wait=True)


@contextmanager
def every(seconds: float, call: Callable[[], None], name: str) -> Iterator[None]:
    """Calls `call` every so many `seconds` in a thread of its own while the block runs."""
    stopped = threading.Event()

    def work() -> None:
        while not stopped.wait(seconds):
            call()

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


class OneAtATime:
    """A lock that does not wait: entering raises RuntimeError while a caller, of any thread, is inside."""

    def __init__(self, message: str) -> None:
        self._message, self._inside = message, threading.Lock()

    def __enter__(self) -> None:
        if not self._inside.acquire(blocking=False):
            raise RuntimeError(self._message)

    def __exit__(self, *exc: object) -> None:
        self._inside.release()


def stacks() -> str:
    """The stack of each thread of the process, under its name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


def values_of_threads() -> Iterator[tuple[str, object]]:
    """The local variables of each function that another thread is in, with the thread's name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, top in sys._current_frames().items():
        frame: FrameType | None = top if ident != threading.get_ident() else None
        while frame is not None:
            yield from ((str(names.get(ident, ident)), value) for value in frame.f_locals.values())
            frame = frame.f_back


def cpu_count() -> int:
    """Cores this process may use (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def calm_interpreter() -> Iterator[None]:
    """Makes threads give way soon, and the garbage collector run seldom and only over what the block makes.

    The libraries in use hold half a million objects. A full collection walks over them for a quarter of a
    second, every thirty thousand samples, and hardly any object of the hot loop is part of a cycle. Cycles
    are still freed, so a long block doesn't grow. Blocks may nest; after the last one all settings are as
    before, but for the allocator's of `_KEPT_BYTES`.
    """
    global _num_inside, _before
    if _num_inside == 0:
        bytes(_KEPT_BYTES)
        _before = (gc.get_threshold(), gc.get_freeze_count(), sys.getswitchinterval())
        sys.setswitchinterval(min(SWITCH_S, _before[2]))
        gc.freeze()
        if _before[0][0] > 0:  # 0: somebody has turned collections off
            gc.set_threshold(max(ALLOCATIONS, _before[0][0]), *_before[0][1:])
    _num_inside += 1
    try:
        yield
    finally:
        _num_inside -= 1
        if _num_inside == 0:
            sys.setswitchinterval(_before[2])
            gc.set_threshold(*_before[0])
            if _before[1] == 0:  # what others froze stays frozen
                gc.unfreeze()
