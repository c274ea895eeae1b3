"""The memory budget of a run, and the memory that there is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dali_aesthetic.launch import work


def test_the_budget_is_the_option_or_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert work.budget_bytes(2) == 2 << 30
    monkeypatch.setattr(work, "memory_bytes", lambda: 8 << 30)
    assert work.budget_bytes(None) == 2 << 30
    monkeypatch.setattr(work, "memory_bytes", lambda: 2 << 40)
    assert work.budget_bytes(None) == 16 << 30


def test_the_memory_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "max").write_text("1000000\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(work, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(tmp_path / "max")))
    assert work.memory_bytes() == 1_000_000
    monkeypatch.setattr(work, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(tmp_path / "absent")))
    assert work.memory_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
