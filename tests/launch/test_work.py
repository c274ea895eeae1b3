"""The memory budget of a run, and the memory that there is."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from dali_aesthetic.config import Config, GuardConfig
from dali_aesthetic.launch import work
from dali_aesthetic.launch.worker import Worker
from dali_aesthetic.run_shard import BATCHES_IN_FLIGHT


def test_the_budget_is_the_option_or_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert work.budget_bytes(2) == 2 << 30
    monkeypatch.setattr(work, "memory_bytes", lambda: 8 << 30)
    assert work.budget_bytes(None) == 2 << 30
    monkeypatch.setattr(work, "memory_bytes", lambda: 2 << 40)
    assert work.budget_bytes(None) == 16 << 30


@pytest.mark.parametrize("share", [1, 4])
def test_all_that_is_held_adds_up_to_the_budget(share: int) -> None:
    config = Config(input=("-",), output="-", guard=GuardConfig(memory_budget_gb=0.5))
    worker, sink = Mock(spec=Worker, limits=None, decoder=None, scorer=None), Mock()
    stages = work.stages_of(config, worker, sink, share)
    limits, budget = stages.read_limits, (1 << 29) // share
    assert stages.batch_bytes is not None
    in_flight = max(stages.batch_bytes * BATCHES_IN_FLIGHT, limits.max_download_bytes)
    reading = max(limits.read_ahead_bytes, limits.max_page_bytes)
    assert in_flight + reading + limits.max_page_bytes == budget


def test_the_memory_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "max").write_text("1000000\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(work, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(tmp_path / "max")))
    assert work.memory_bytes() == 1_000_000
    monkeypatch.setattr(work, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(tmp_path / "absent")))
    assert work.memory_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
