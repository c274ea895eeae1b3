"""The memory budget, and signals outside of the main thread."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from dali_aesthetic.launch import work
from dali_aesthetic.launch.signals import Stopped, stoppable


def test_the_budget_is_what_was_asked_for_or_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert work.budget_bytes(2) == 2 << 30
    monkeypatch.setattr(work, "memory_bytes", lambda: 8 << 30)
    assert work.budget_bytes(None) == 2 << 30
    monkeypatch.setattr(work, "memory_bytes", lambda: 2 << 40)
    assert work.budget_bytes(None) == 16 << 30


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "max").write_text("1000000\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(work, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(tmp_path / "max")))
    assert work.memory_bytes() == 1_000_000
    monkeypatch.setattr(work, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(tmp_path / "absent")))
    assert work.memory_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_signal_raises_once_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped by SIGTERM") as stopped, stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_it_changes_nothing() -> None:
    entered = []

    def work() -> None:
        with stoppable():
            entered.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [before]
