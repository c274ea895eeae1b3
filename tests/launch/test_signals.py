"""Signals end a run in order."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from dali_aesthetic.launch.signals import Stopped, keeping_handlers, stoppable


def test_the_first_signal_raises_and_the_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped by SIGTERM") as stopped, stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_of_the_main_thread_no_handler_changes() -> None:
    entered = []

    def work() -> None:
        with stoppable():
            entered.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [before]


def test_handlers_that_a_library_sets_are_undone() -> None:
    """Those of Ray would end the process at once, and the lock on the output would stay."""
    before = signal.getsignal(signal.SIGTERM)
    with keeping_handlers():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before
