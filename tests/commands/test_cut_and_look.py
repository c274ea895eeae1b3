"""The commands beside `run`, called as from a shell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from dali_aesthetic.config import Config, ModelConfig
from dali_aesthetic.launch.run import run
from tests.conftest import snapshot

runner = CliRunner()


def call(*arguments: object) -> tuple[int, str]:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout


@pytest.fixture(scope="module")
def scored(shards_dir: Path, tiny_model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    values = {"input": str(shards_dir), "output": str(folder), "device": "cpu", "scores_only": True}
    run(Config.build(values | {"model": tiny_model.model_dump()}))
    return folder


def test_select_prints_the_kept_keys(scored: Path) -> None:
    rows = [row for path in sorted((scored / "scores").iterdir()) for row in pq.read_table(path).to_pylist()]
    good = [row for row in rows if row["aesthetic_score"] is not None]
    assert call("select", "--scores", scored, "--raw-threshold", -1e6)[1].split() == [r["key"] for r in good]
    code, text = call("select", "--scores", scored, "--keep-top", "50%", "--with-shard")
    best = sorted((row["aesthetic_score"] for row in good), reverse=True)[: round(len(good) / 2)]
    expected = [f"{r['source_shard']}\t{r['key']}" for r in good if r["aesthetic_score"] >= best[-1]]
    assert code == 0
    assert text.splitlines() == expected


def test_select_ends_without_a_word_where_nobody_reads_on(scored: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dali_aesthetic", "select", "--scores", str(scored)]
    done = subprocess.run(
        [*command, "--raw-threshold", "-9"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_select_of_a_folder_without_scores_is_a_wrong_configuration(tmp_path: Path) -> None:
    assert call("select", "--scores", tmp_path, "--threshold", 0.5) == (2, "")


def test_filter_from_the_shell(scored: Path, shards_dir: Path, tmp_path: Path) -> None:
    code, _ = call(
        "filter", "--scores", scored, "--input", shards_dir, "--output", tmp_path, "--keep-top", "25%"
    )
    assert code == 0
    assert len(list((tmp_path / "shards").iterdir())) == 3
    assert call("filter", "--scores", scored, "--output", tmp_path)[0] == 2


def test_filter_compares_with_laion_for_its_head_alone(
    scored: Path, shards_dir: Path, tmp_path: Path
) -> None:
    given = (
        "filter",
        "--scores",
        scored,
        "--input",
        shards_dir,
        "--output",
        tmp_path,
        "--preset",
        "standard",
    )
    result = runner.invoke(app, [str(argument) for argument in given])
    assert "raw score >= 5" in result.stderr
    assert "LAION" not in result.stderr
    assert json.loads((tmp_path / "run.json").read_bytes())["config"]["model"]["heads"] == ["random:1"]


def test_what_filter_wrote_can_be_cut_again(scored: Path, shards_dir: Path, tmp_path: Path) -> None:
    cut = ("filter", "--input", shards_dir, "--raw-threshold", 0)
    assert call(*cut, "--scores", scored, "--output", tmp_path / "a")[0] == 0
    assert call(*cut, "--scores", tmp_path / "a", "--output", tmp_path / "b")[0] == 0
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    call("compact", tmp_path / "a", "--output", tmp_path / "packed")
    assert call(*cut, "--scores", tmp_path / "packed", "--output", tmp_path / "c")[0] == 2


def test_inspect_says_what_is_there(shards_dir: Path, tmp_path: Path) -> None:
    code, text = call("inspect", "--input", shards_dir, "--json", "--shards", 3)
    found = json.loads(text)
    assert code == 0
    assert found["estimated_samples"] == 24
    assert found["formats"]["jpeg"] == 23
    assert call("inspect", "--input", tmp_path)[0] == 2


def test_doctor_ends_with_1_where_something_fails(tmp_path: Path) -> None:
    tiny = ("--encoder", "ViT-B-32", "--weights", "random:0", "--head", "random:0", "--device", "cpu")
    code, text = call("doctor", *tiny, "--output", tmp_path, "--json")
    checks = {finding["check"]: finding["verdict"] for finding in json.loads(text)}
    assert (code, checks["dali"], checks["weights"], checks["output"]) == (0, "ok", "ok", "ok")
    (tmp_path / "file").write_text("")
    assert call("doctor", *tiny, "--output", tmp_path / "file" / "x")[0] == 1
    assert call("doctor", *tiny[:-1], "gpu")[0] == 2
    assert call("doctor", *tiny, "--engine", "rya")[0] == 2
