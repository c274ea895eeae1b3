"""The ladder's file, which is written after every step."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ladder

ROW = ladder.Row("fused fp16", 1, 2.0, 5e5, 700.0, 1300.0)
RESULT: dict[str, Any] = {
    "device": "H100",
    "date": "2026-01-01",
    "ladder": [asdict(ROW)],
    "errors": [],
    "matmul_teraflops": {"fp16": 600.0},
}


def test_a_ladder_killed_during_a_write_keeps_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "encoder_h100_2026-01-01.json"
    ladder._write(path, RESULT)
    write_text = Path.write_text

    def half(target: Path, text: str) -> int:
        write_text(target, text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        ladder._write(path, RESULT | {"complete": True})
    assert json.loads(path.read_text()) == RESULT
