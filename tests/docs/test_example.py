"""The example script prints what the output files hold."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.docs.commands import ROOT

SCRIPT = str(ROOT / "examples" / "aesthetic_pipeline.py")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(SCRIPT, run_name="__main__")
    return end.value.code


def test_it_keeps_the_good_part_and_prints_the_distribution(
    sandbox: Path, tiny_weights: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (sandbox / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    assert call(monkeypatch, "--input", "photos", "--output", "out", "--threshold", "0.5") == 0
    rows = pq.read_table("out/scores")
    raw = rows["aesthetic_score"].drop_null().to_numpy().astype(np.float64)
    printed = capsys.readouterr().out
    assert f"kept {int((raw >= 5).sum())} of {rows.num_rows}, bad 1" in printed
    assert f"min {raw.min() / 10:.3f}  mean {raw.mean() / 10:.3f}  max {raw.max() / 10:.3f}" in printed
    assert f"75% of the images score below {np.quantile(raw, 0.75) / 10:.3f}" in printed
    assert call(monkeypatch, "--input", "photos", "--output", "out", "--threshold", "0.5") == 0
    assert capsys.readouterr().out == printed, "samples of the earlier run count too"


def test_a_configuration_error_is_one_line(sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = call(monkeypatch, "--input", "photos", "--output", "out", "--threshold", "5")
    assert str(code).startswith("error: --threshold 5 is outside 0..1: did you mean --raw-threshold 5")
    assert str(call(monkeypatch, "--input", "nothing", "--output", "out")).startswith(
        "error: nothing does not"
    )


def test_an_output_that_cannot_be_written_is_one_line(
    sandbox: Path, tiny_weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sandbox / "file").write_bytes(b"")
    code = str(call(monkeypatch, "--input", "photos", "--output", "file/out"))
    assert code.startswith("error: ")
    assert "file" in code


def test_a_shard_that_fails_is_named(
    sandbox: Path, tiny_weights: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (sandbox / "bad.tar").write_bytes(b"no tar" * 1000)
    assert call(monkeypatch, "--input", "bad.tar", "--output", "out") == 1
    printed = capsys.readouterr()
    assert (printed.out, "failed bad: " in printed.err) == ("", True)


def test_an_input_without_any_score_ends_with_exit_code_1(
    sandbox: Path, tiny_weights: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (sandbox / "broken").mkdir()
    (sandbox / "broken" / "a.jpg").write_bytes(b"\xff\xd8 no image")
    assert call(monkeypatch, "--input", "broken", "--output", "out") == 1
    assert "nothing was scored" in capsys.readouterr().out
