"""End to end in a short form on the CPU: an encoder and its runs."""

from __future__ import annotations

import pytest

from benchmarks.end_to_end import ENCODER, USUAL, measure_encoder, named, other_ways
from benchmarks.results import read_result
from benchmarks.settings import Settings
from tests.benchmarks import made_up


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A tiny encoder over shards of twelve images."""
    return made_up.tiny_settings(tmp_path_factory.mktemp("end-to-end"))


def test_an_encoder_and_its_run_share_one_row_and_one_limit(settings: Settings) -> None:
    record = settings.record("end-to-end")
    measure_encoder(record, settings)
    result = read_result(record.path)
    encoder, run = result.row(ENCODER), result.row(USUAL)
    assert encoder is not None
    assert run is not None
    assert run.limit == pytest.approx(encoder.median, rel=1e-4)
    assert encoder.repeats == 2
    assert run.detail["kept"] > 0
    assert run.detail["backend"] == encoder.detail["backend"] == "eager"
    webmix = result.row("end to end, webmix")
    assert webmix is not None
    assert webmix.limit == run.limit
    assert result.row("end to end, 4:2:0 and 4:4:4, 512 px") is not None
    assert other_ways(settings) == ()


def test_the_rows_of_another_way_name_it() -> None:
    assert named(USUAL, ("fused", "fp8")) == "end to end, 25% kept, fused fp8"
    assert named(USUAL, ("fused", "fp16", "ViT-B-32")) == "end to end, 25% kept, ViT-B-32, fused fp16"
    assert named(USUAL, ()) == USUAL
