"""The command line as people meet it: exit codes, messages, frozen flags."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from dali_aesthetic.cli import app
from dali_aesthetic.config import ModelConfig
from tests.conftest import snapshot


def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "dali_aesthetic", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def tiny(*arguments: object) -> list[object]:
    model = ["--encoder", "ViT-B-32", "--weights", "random:1", "--head", "random:1", "--device", "cpu"]
    return ["run", *arguments, *model]


def test_a_run_from_the_shell_writes_what_the_contract_names(shards_dir: Path, tmp_path: Path) -> None:
    done = call(
        *tiny("--input", shards_dir / "0000{0..1}.tar", "--output", tmp_path / "out", "--threshold", "0.5")
    )
    assert done.returncode == 0, done.stderr
    assert sorted(snapshot(tmp_path / "out")) == [
        "scores/00000.parquet", "scores/00001.parquet", "shards/00000.tar", "shards/00001.tar",
        "stats/00000.json", "stats/00001.json",
    ]  # fmt: skip
    assert (tmp_path / "out" / "run.json").exists()
    assert "2 committed, 0 failed" in done.stderr
    assert "1 empty, 1 truncated" in done.stderr


def test_braces_and_globs_expanded_by_the_shell_are_understood(shards_dir: Path, tmp_path: Path) -> None:
    expanded = [shards_dir / "00000.tar", shards_dir / "00001.tar"]
    done = call(*tiny("--output", tmp_path / "out", "--input", *expanded))
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "{here}", "--threshold", "5"], "did you mean --raw-threshold 5"),
        (["--input", "{here}", "--threshold", "0.5", "--preset", "high"], "--threshold and --preset"),
        (["--input", "{here}/none-{00..03}.tar"], "none-"),
        (["--input", "{here}/nothing"], "nothing"),
        ([], "input is missing: give --input"),
        (["--input", "{here}", "--device", "gpu"], "device: 'gpu' does not fit"),
        (["--input", "{here}", "--config", "{here}/none.yaml"], "none.yaml"),
        (["--input", "{here}", "--encoder", "RN50"], "RN50"),
        (["--input", "{here}", "--precision", "fp16", "--device", "cpu"], "fp16 needs a GPU"),
    ],
)
def test_wrong_configuration_is_exit_2_and_one_message(
    shards_dir: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    filled = [argument.replace("{here}", str(shards_dir)) for argument in arguments]
    done = call("run", "--output", tmp_path / "out", "--weights", "random:1", "--head", "random:1", *filled)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_missing_weights_are_exit_2_and_say_how_to_get_them(shards_dir: Path, tmp_path: Path) -> None:
    done = call(
        "run", "--input", shards_dir, "--output", tmp_path / "out", "--device", "cpu",
        HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path), HOME=str(tmp_path),
    )  # fmt: skip
    text = " ".join(done.stderr.split())
    assert done.returncode == 2
    assert "sha256" in text
    assert "dali-aesthetic download --encoder ViT-L-14" in text
    assert not (tmp_path / "out").exists()


def test_an_unreadable_shard_is_exit_1_and_named(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_text("no tar at all " * 100)
    done = call(*tiny("--input", tmp_path / "bad.tar", "--output", tmp_path / "out"))
    assert done.returncode == 1
    assert "bad.tar" in done.stderr


def test_a_yaml_file_gives_fields_and_flags_win(shards_dir: Path, tmp_path: Path) -> None:
    values = {
        "input": [str(shards_dir / "00000.tar")],
        "output": str(tmp_path / "from-file"),
        "device": "cpu",
        "threshold": {"raw": 1000.0},
        "model": {"encoder": "ViT-B-32", "weights": "random:1", "heads": ["random:1"]},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    output = tmp_path / "from-flag"
    done = call("run", "--config", tmp_path / "run.yaml", "--output", output, "--preset", "permissive")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "from-file").exists()
    assert "raw score >= 3" in done.stderr


def test_the_flags_of_run_are_frozen() -> None:
    """A new flag is a decision: it joins this list, the documentation and `config.py` together."""
    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    assert {flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")} == FLAGS


FLAGS = {
    "--input", "--output", "--threshold", "--raw-threshold", "--preset", "--encoder", "--weights", "--head",
    "--model-dir", "--device", "--precision", "--backend", "--batch-size", "--num-threads", "--config",
    "--apply-exif", "--max-bad-fraction", "--quarantine", "--stall-timeout", "--memory-budget", "--verbose",
    "--image-column", "--save-embeddings", "--keep-top", "--max-threshold", "--max-raw-threshold",
    "--quiet", "--json", "--gpus", "--workers", "--engine", "--metrics-port", "--metrics-host", "--log-json",
    "--wandb",
}  # fmt: skip


def test_help_and_version_do_not_wait_for_torch() -> None:
    code = "import sys; from dali_aesthetic.cli import app; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert call("--version").stdout.strip()
    assert "--raw-threshold" in call("run", "--help", COLUMNS="160").stdout


def test_defaults_in_the_help_are_the_configs(tmp_path: Path) -> None:
    text = " ".join(call("run", "--help", COLUMNS="200").stdout.split())
    default = ModelConfig()
    assert f"(default: {default.encoder})" in text
    assert f"(default: {default.weights})" in text


def test_every_command_shows_examples_in_its_help() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands) >= 12
    assert not [name for name, command in commands.items() if "dali-aesthetic " + name not in command.epilog]


def test_quiet_says_nothing_of_success_and_json_is_for_machines(shards_dir: Path, tmp_path: Path) -> None:
    where = ("--input", shards_dir / "00001.tar", "--output")
    quiet = call(*tiny(*where, tmp_path / "quiet", "--quiet"))
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    said = json.loads(call(*tiny(*where, tmp_path / "json", "--json", "--raw-threshold", "-1000")).stdout)
    assert (said["samples"], said["kept"], said["committed"]) == (10, 8, 1)
    assert said["statuses"] == {"ok": 8, "truncated": 1, "empty": 1}
    assert said["min_raw"] == -1000
    (tmp_path / "bad.tar").write_text("no tar " * 200)
    bad = call(*tiny("--input", tmp_path / "bad.tar", "--output", tmp_path / "bad", "--quiet"))
    assert bad.returncode == 1
    assert "bad.tar" in bad.stderr
