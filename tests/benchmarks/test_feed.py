"""The decoder beside a busy encoder, and what runs in processes of its own, in a short form on the CPU."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import child, feed
from benchmarks.bounded import descendants, run_bounded
from benchmarks.busy import BusyEncoder, Replayed
from benchmarks.end_to_end import ENCODER, USUAL, measure_encoder, other_ways
from benchmarks.record import Measured, Record
from benchmarks.result import read_result
from benchmarks.settings import Settings
from benchmarks.tables import blocks, page
from benchmarks.throughput import steady_rate
from dali_aesthetic.score.build import ModelReader, scorer_of
from tests.benchmarks import made_up


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A tiny encoder over shards of twelve images."""
    folder = tmp_path_factory.mktemp("feed")
    return Settings(
        device="cpu", encoder="ViT-S-32-alt", quick=True, distinct=12, num_shards=2, batch_size=4, repeats=1,
        seconds=0.05, data=folder / "data", results=folder / "results",
    )  # fmt: skip


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
    assert other_ways(settings) == ()


def test_the_steady_part_is_the_middle_of_a_run() -> None:
    start = [(3.0, 100), (3.1, 200)]
    middle = [(4.0 + 0.5 * step, 300 + 100 * step) for step in range(7)]
    assert steady_rate([*start, *middle, (9.0, 1000), (9.5, 1000)]) == pytest.approx(200.0)
    assert steady_rate([(1.0, 10), (2.0, 20)]) is None
    assert steady_rate([]) is None


def add_row(record: Record, settings: Settings, name: str) -> None:
    """What is measured in a child."""
    assert settings.resume
    record.add(Measured(name=name, values=[float(os.environ.get("DALI_AESTHETIC_TEST", 0))]))


def fail(record: Record, settings: Settings) -> None:
    """A measurement that fails."""
    record.add(Measured(name="before", values=[1.0]))
    raise RuntimeError("no such luck\nand more")


def test_a_child_has_its_environment_and_adds_its_rows(settings: Settings) -> None:
    record = settings.record("children")
    env = {"DALI_AESTHETIC_TEST": "7", "PYTHONPATH": str(Path(__file__).parents[2])}
    record.add(Measured(name="first", values=[1.0]))
    assert child.in_child(add_row, record, settings, "title", "row", bound_s=200, env=env)
    assert {row["name"]: row["median"] for row in record.rows} == {"first": 1.0, "row": 7.0}


def test_a_child_that_fails_or_takes_too_long_is_named_and_only_the_latter_done_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_this_process(command: list[str], seconds: float, env: object) -> int | None:
        return child.main(*command[3:]) if seconds > 1 else None

    monkeypatch.setattr(child, "run_bounded", in_this_process)
    record = settings.record("failing children")
    assert child.in_child(fail, record, settings, "failing", bound_s=2)
    assert not child.in_child(add_row, record, settings, "slow", "row", bound_s=1)
    assert record.get("skipped") == [
        {"name": "failing", "reason": "RuntimeError: no such luck"},
        {"name": "slow", "reason": "not done after 1 s"},
    ]
    resumed = replace(settings, resume=True).record("failing children")
    assert resumed.has("before")
    assert child.in_child(fail, resumed, settings, "failing", bound_s=0)
    assert child.in_child(add_row, resumed, settings, "slow", "slow", bound_s=2)
    assert [row["name"] for row in resumed.rows] == ["before", "slow"]
    assert len(resumed.get("skipped")) == 1
    assert not settings.record("failing children").has("before")


def test_a_child_that_fails_after_its_row_leaves_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "run_bounded", lambda command, seconds, env: child.main(*command[3:]))
    record = settings.record("failing late")
    assert child.in_child(fail, record, settings, "before", bound_s=2)
    assert [row["name"] for row in record.rows] == ["before"]
    assert record.get("skipped") == [
        {"name": "before: what comes after it", "reason": "RuntimeError: no such luck"}
    ]


def test_a_child_that_starts_after_midnight_adds_to_the_file_of_its_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "run_bounded", lambda command, seconds, env: child.main(*command[3:]))
    record = settings.record("by night")
    monkeypatch.setattr("time.strftime", lambda pattern: "2999-01-01")
    assert child.in_child(add_row, record, settings, "title", "row", bound_s=2)
    assert [row["name"] for row in record.rows] == ["row"]
    assert [path.name for path in settings.results.glob("by night_*")] == [record.path.name]


def _gone(pid: int) -> bool:
    """A killed process takes its time to go, and its row until somebody asks for it."""
    for _ in range(200):
        try:
            if ") Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_what_a_command_started_ends_with_it(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    inner = f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    call = f"subprocess.run([sys.executable, '-S', '-c', {inner!r}], start_new_session=True)"
    outer = f"import subprocess, sys; {call}"
    assert run_bounded([sys.executable, "-S", "-c", outer], 8) is None
    pid = int(marker.read_text())
    assert _gone(pid), f"process {pid} is still there"
    assert pid not in descendants(os.getpid())


def test_the_document_shows_the_newest_feed_what_it_lacks_and_then_what_was_found(tmp_path: Path) -> None:
    before = made_up.result(
        tmp_path, "queues", [made_up.row("end to end, torchscript", 2385.0, limit=2584.0)]
    )
    assert "| end to end, torchscript | 2,385 | 92% |" in blocks([before])["feed"]
    rows = [
        made_up.row("decode alone", 25_000.0),
        made_up.row("decode beside fused fp8", 9000.0, encoder_beside=5900.0, encoder_alone=6000.0),
    ]
    now = made_up.result(tmp_path, "feed", rows, date="2026-02-01")
    text = blocks([before, now])["feed"]
    assert "| decode beside fused fp8 | 9,000 | 5,900 | 6,000 |" in text
    assert "nothing: made up." in text
    assert text.index("decode beside") < text.index("The steps that led") < text.index("torchscript")
    assert "| decode alone | 25,000 |  |  |" in page(now)
