"""Tars in these tests are read in many parts; elsewhere small ones are read whole."""

from __future__ import annotations

import pytest

from dali_aesthetic.shards.opened import LocalFile


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a multiple of the block size, so that members, headers and samples cross the borders of parts."""
    monkeypatch.setattr(LocalFile, "part_bytes", 700)
