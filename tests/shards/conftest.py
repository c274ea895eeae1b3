"""Tars of this room's tests are read in many parts; elsewhere small ones are read whole."""

from __future__ import annotations

import pytest

from dali_aesthetic.shards.opened import LocalFile


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no whole number of blocks: members, headers and samples lie across their borders."""
    monkeypatch.setattr(LocalFile, "part_bytes", 700)
