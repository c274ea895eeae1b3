"""The encoders' limit: of the ceilings that were measured beside them, and of no others."""

from __future__ import annotations

from pathlib import Path

from benchmarks.encoders import encoder_limit
from tests.benchmarks import made_up

ENCODER = "ViT-L-14"


def test_the_limit_is_of_the_same_day_and_encoder(tmp_path: Path) -> None:
    rows = [made_up.row("encoder limit fp16", 4050.0), made_up.row("encoder limit fp8", 7995.0)]
    made_up.result(tmp_path, "ceilings", rows)
    same_day = tmp_path / "encoders_h100_2026-01-01.json"
    found = [encoder_limit(same_day, ENCODER, precision) for precision in ("fp16", "bf16", "fp8", "fp32")]
    assert found == [4050.0, 4050.0, 7995.0, None]
    assert encoder_limit(tmp_path / "encoders_h100_2026-01-06.json", ENCODER, "fp16") is None
    assert encoder_limit(tmp_path / "encoders_a100_2026-01-01.json", ENCODER, "fp16") is None
    assert encoder_limit(same_day, "ViT-B-32", "fp16") is None
