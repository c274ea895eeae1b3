"""The decoder beside a busy encoder, in a short form on the CPU."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import pytest
import torch

from benchmarks import feed
from benchmarks.feed import BusyEncoder, Replayed
from benchmarks.results import read_result
from benchmarks.settings import Settings
from dali_aesthetic.score.build import ModelReader, scorer_of
from tests.benchmarks import made_up


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A tiny encoder over shards of twelve images."""
    return made_up.tiny_settings(tmp_path_factory.mktemp("feed"))


def test_the_decoder_is_measured_alone_and_beside_the_encoder(settings: Settings) -> None:
    record = settings.record("feed")
    feed.measure_beside(record, settings, feed.title("eager", "fp32"), "eager", "fp32", "")
    alone, beside = read_result(record.path).rows
    assert (alone.name, beside.name) == ("decode alone", "decode beside eager fp32")
    assert beside.limit == alone.median
    assert beside.detail["encoder_alone"] > 0
    assert beside.detail["encoder_share"] == pytest.approx(
        beside.detail["encoder_beside"] / beside.detail["encoder_alone"], rel=0.01
    )
    assert (beside.detail["backend"], beside.detail["batch_size"]) == ("eager", 4)


def test_a_mixture_has_a_row_of_its_own_with_the_cores_it_takes(settings: Settings) -> None:
    record = settings.record("feed")
    name = feed.title("eager", "fp32", "webmix")
    feed.measure_beside(record, settings, name, "eager", "fp32", "", "webmix")
    row = read_result(record.path).rows[-1]
    assert row.name == "decode beside eager fp32, webmix"
    assert row.limit is not None
    assert 0 < row.detail["cores"] < 64


class _Backend:
    """Takes a millisecond a call, or fails after some."""

    def __init__(self, calls: float) -> None:
        self.calls, self.done = calls, 0

    def __call__(self, images_NHWC: torch.Tensor) -> None:
        self.done += 1
        if self.done > self.calls:
            raise RuntimeError("out of calls")
        time.sleep(0.001)


class _Scorer:
    stream = None

    def __init__(self, calls: float) -> None:
        self.backend = _Backend(calls)


def test_a_busy_encoder_encodes_until_its_block_ends() -> None:
    scorer: Any = _Scorer(calls=float("inf"))
    with BusyEncoder(scorer, torch.zeros(7, 1)) as encoder:
        time.sleep(0.1)
        rate = encoder.rate()
    done = scorer.backend.done
    assert done > 5
    assert 0 < rate <= 7000
    time.sleep(0.02)
    assert scorer.backend.done == done


@pytest.mark.parametrize("calls", [0, 20])
def test_a_busy_encoder_that_fails_says_so(calls: int) -> None:
    scorer: Any = _Scorer(calls)

    def keep_busy() -> None:
        with BusyEncoder(scorer, torch.zeros(1, 1)):
            while scorer.backend.done <= calls:
                time.sleep(0.01)

    with pytest.raises(RuntimeError, match="out of calls"):
        keep_busy()


@pytest.mark.gpu
def test_a_replayed_encoder_scores_as_the_launched_one() -> None:
    device = torch.device("cuda")
    model = ModelReader(encoder="ViT-S-32-alt", weights="random:0", heads=["random:0"], model_dir=None).take()
    scorer = scorer_of(model, device=device, precision="fp16", backend="eager", batch_size=8)
    size = scorer.image_size
    images = torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8, device=device)
    launched = scorer.backend(images)[0].clone()
    scorer.backend = Replayed(scorer.backend, images)
    with BusyEncoder(scorer, images) as encoder:
        time.sleep(0.2)
        assert encoder.rate() > 0
    torch.testing.assert_close(scorer.backend(images)[0], launched)


def test_windows_count_whole_batches_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(0.0, 0.5)  # what every look at the clock says
    monkeypatch.setattr(feed.time, "perf_counter", lambda: next(clock))

    class Batch:
        rows_N = range(10)

    batches: Any = (Batch() for _ in count())
    fed = feed.take(batches, seconds=1.0, windows=2)
    assert fed.rates == [20.0, 20.0]
    assert fed.began == 0.0
