"""Signals that stop a run in order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

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
