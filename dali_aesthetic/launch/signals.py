"""What a process gets from outside: signals that stop a run in order, and standard streams that can't."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}")


@contextmanager
def stoppable() -> Iterator[None]:
    """Makes the first such signal raise `Stopped` within the block; a second one ends the process at once.

    Does nothing outside of the main thread, where Python allows no handlers.
    """
    try:
        before = {number: signal.signal(number, _stop) for number in _STOPPING}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Restores the handlers of these signals after the block, in which a library starts.

    Does nothing outside of the main thread.
    """
    before = {number: signal.getsignal(number) for number in _STOPPING}
    yield
    with suppress(ValueError):
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _: FrameType | None) -> None:
    for stopping in _STOPPING:
        signal.signal(stopping, signal.SIG_DFL)
    raise Stopped(number)


class _Lossy(io.FileIO):
    """Drops what can't be written."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


def keep_streams() -> None:
    """Makes sure that a closed or full standard error, or a closed standard output, ends nothing.

    A closed stream is opened on the null device: else the next file, a tar, would get its number, and a
    library's message would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is sys.__stderr__:
        stream = io.BufferedWriter(_Lossy(2, "w", closefd=False))
        encoding = sys.stderr.encoding if sys.stderr else None
        sys.stderr = io.TextIOWrapper(stream, encoding, "backslashreplace", line_buffering=True)
        sys.__stderr__ = sys.stderr  # type: ignore[misc]
