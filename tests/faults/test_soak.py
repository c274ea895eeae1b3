"""The soak in short; `make soak` is the full length."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.runs import Zygote
from tests.faults.soak import soak


@pytest.mark.slow
def test_bad_input_costs_neither_memory_nor_much_time(zygote: Zygote, tmp_path: Path) -> None:
    result = soak(zygote, tmp_path, 6)
    assert result.throughput_ratio >= 0.6, result  # 0.8 in full; seconds on a busy machine tell less
    assert result.growth_mb <= 3 * result.noise_mb + 40, result
