"""`select`, `filter`, `inspect` and `doctor`, called as from a shell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from dali_aesthetic.config import Config, ModelConfig
from dali_aesthetic.inspect_input import survey
from dali_aesthetic.launch.filter import filter_scored
from dali_aesthetic.launch.run import run
from dali_aesthetic.report.page import report_at
from dali_aesthetic.verify.outputs import verify_location
from tests.conftest import jpeg, snapshot
from tests.shards.tar_factory import pack

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


def test_select_prints_what_a_condition_keeps(scored: Path) -> None:
    rows = [row for path in sorted((scored / "scores").iterdir()) for row in pq.read_table(path).to_pylist()]
    good = [row for row in rows if row["aesthetic_score"] is not None]
    for condition, keys in (
        ("min_side >= 200", [row["key"] for row in good if min(row["width"], row["height"]) >= 200]),
        ("caption LIKE '1%'", [row["key"] for row in good if row["caption"][0] == "1"]),
        ("kept", []),
        ("NOT kept", [row["key"] for row in good]),
    ):
        assert call("select", "--scores", scored, "--where", condition) == (
            0,
            "".join(f"{key}\n" for key in keys),
        )
    result = runner.invoke(app, ["select", "--scores", str(scored), "--where", "hight > 5"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no column hight: did you mean height?" in " ".join(result.stderr.split())
    assert runner.invoke(app, ["select", "--scores", str(scored), "--where", "avg(width) > 5"]).exit_code == 2


def test_select_prints_paths_of_images_and_ends_them_with_nul(
    tmp_path: Path, scored: Path, tiny_model: ModelConfig
) -> None:
    photo = jpeg(Image.new("RGB", (40, 40)))
    odd = "odd\nname, 'quoted'.jpg"
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", odd):
        (tmp_path / "photos" / name).write_bytes(photo)
    values = {"input": str(tmp_path / "photos"), "output": str(tmp_path / "s"), "scores_only": True}
    run(Config.build(values | {"device": "cpu", "model": tiny_model.model_dump()}))
    call_select = partial(call, "select", "--scores", tmp_path / "s", "--raw-threshold", -100)
    paths = [f"{tmp_path}/photos/a.jpg", f"{tmp_path}/photos/{odd}"]
    assert call_select("--paths", "-0") == (0, "".join(f"{path}\0" for path in paths))
    assert call_select("--paths")[1].splitlines() == [path.replace("\n", "\\n") for path in paths]
    assert call_select("--null")[1] == "a\0odd_name, 'quoted'\0"
    assert [json.loads(line)["source_shard"] for line in call_select("--json")[1].splitlines()] == paths
    told = runner.invoke(app, ["select", "--scores", str(scored), "--raw-threshold", "-100", "--paths"])
    assert told.exit_code == 2
    assert "00000.tar holds more than an image" in told.stderr.replace("\n", " ")


def test_select_keeps_a_line_for_a_key_with_control_characters(
    tmp_path: Path, tiny_model: ModelConfig
) -> None:
    keys = ["nl\nname", "tab\tname", "esc\x1b[31m"]
    photo = jpeg(Image.new("RGB", (40, 40)))
    (tmp_path / "a.tar").write_bytes(pack([(f"{key}.jpg", photo) for key in keys]))
    values = {"input": str(tmp_path / "a.tar"), "output": str(tmp_path / "s"), "scores_only": True}
    run(Config.build(values | {"model": tiny_model.model_dump()}))
    given = ("select", "--scores", tmp_path / "s", "--raw-threshold", -1e6)
    assert call(*given)[1].splitlines() == ["nl\\nname", "tab\\tname", "esc\\x1b[31m"]
    assert [json.loads(line)["key"] for line in call(*given, "--json")[1].splitlines()] == keys


def test_select_ends_silently_when_its_reader_closes_the_pipe(scored: Path) -> None:
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


def test_filter_writes_the_kept_shards(scored: Path, shards_dir: Path, tmp_path: Path) -> None:
    code, _ = call(
        "filter", "--scores", scored, "--input", shards_dir, "--output", tmp_path, "--keep-top", "25%"
    )
    assert code == 0
    assert len(list((tmp_path / "shards").iterdir())) == 3
    assert call("filter", "--scores", scored, "--output", tmp_path)[0] == 2


def test_filter_compares_with_laion_for_its_head_alone(
    scored: Path, shards_dir: Path, tmp_path: Path
) -> None:
    where = ("--scores", scored, "--input", shards_dir, "--output", tmp_path)
    result = runner.invoke(app, ["filter", *map(str, where), "--preset", "standard"])
    assert "raw score >= 5" in result.stderr
    assert "LAION" not in result.stderr
    assert json.loads((tmp_path / "run.json").read_bytes())["config"]["model"]["heads"] == ["random:1"]


def test_the_output_of_filter_can_be_filtered_again(scored: Path, shards_dir: Path, tmp_path: Path) -> None:
    cut = ("filter", "--input", shards_dir, "--raw-threshold", 0)
    assert call(*cut, "--scores", scored, "--output", tmp_path / "a")[0] == 0
    assert call(*cut, "--scores", tmp_path / "a", "--output", tmp_path / "b")[0] == 0
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    call("compact", tmp_path / "a", "--output", tmp_path / "packed")
    assert call(*cut, "--scores", tmp_path / "packed", "--output", tmp_path / "c")[0] == 2


def test_inspect_summarises_the_input(shards_dir: Path, tmp_path: Path) -> None:
    code, text = call("inspect", "--input", shards_dir, "--json", "--shards", 3)
    found = json.loads(text)
    assert code == 0
    assert found["estimated_samples"] == 24
    assert found["formats"]["jpeg"] == 23
    assert call("inspect", "--input", tmp_path)[0] == 2


def test_doctor_exits_with_1_if_a_check_fails(tmp_path: Path) -> None:
    tiny = ("--encoder", "ViT-B-32", "--weights", "random:0", "--head", "random:0", "--device", "cpu")
    code, text = call("doctor", *tiny, "--output", tmp_path, "--json")
    checks = {finding["check"]: finding["verdict"] for finding in json.loads(text)}
    assert (code, checks["dali"], checks["weights"], checks["output"]) == (0, "ok", "ok", "ok")
    (tmp_path / "file").write_text("")
    assert call("doctor", *tiny, "--output", tmp_path / "file" / "x")[0] == 1
    assert call("doctor", *tiny[:-1], "gpu")[0] == 2
    assert call("doctor", *tiny, "--engine", "rya")[0] == 2


def test_functions_of_the_library_take_paths(scored: Path, shards_dir: Path, tmp_path: Path) -> None:
    config = Config.build({"input": shards_dir, "output": tmp_path / "out", "threshold": {"raw": 0}})
    assert filter_scored(config, scored).exit_code == 0
    assert verify_location(tmp_path / "out").problems == ()
    assert report_at(tmp_path / "out") == str(tmp_path / "out" / "report.html")
    assert survey(shards_dir, 1).num_read == 1


def test_filter_takes_the_record_of_the_scores_as_config(scored: Path, tmp_path: Path) -> None:
    cut = ("--scores", scored, "--config", scored / "run.json", "--raw-threshold", 0, "--output", tmp_path)
    assert call("filter", *cut)[0] == 0
    assert len(list((tmp_path / "shards").iterdir())) == 3
