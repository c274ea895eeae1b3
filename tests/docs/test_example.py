"""The example script prints what the output files hold, and the notebook runs as it is written."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

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
    assert str(code).startswith("error: unit 5 is outside 0..1: did you mean raw 5")
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


def test_the_notebook_runs_from_photos_to_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(ROOT / "examples" / "first_look.ipynb", as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")], "committed without outputs"
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    settings.source += '\nMODEL = {"encoder": "ViT-S-32-alt", "weights": "random:0", "heads": ["random:0"]}'
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    outputs = ["".join(map(str, cell.get("outputs", []))) for cell in notebook.cells]
    (commands,) = [out for out in outputs if "report.html" in out]
    kept = [name for name in ("astronaut", "chelsea", "coffee", "rocket") if name in commands]
    assert kept, commands
    assert any("image/png" in out for out in outputs), "the photos"
    assert (tmp_path / "scored" / "report.html").exists()
