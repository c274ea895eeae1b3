"""The command line: exit codes, messages, flags."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from dali_aesthetic.config import ModelConfig, merge
from dali_aesthetic.score import weights
from dali_aesthetic.score.published import ResolvedFile
from tests.conftest import snapshot


def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as from a shell. It costs seconds of imports."""
    return subprocess.run(
        [sys.executable, "-m", "dali_aesthetic", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def invoke(*arguments: object) -> Result:
    """In this process. An exception that no message was made of is raised here."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def tiny(*arguments: object) -> list[object]:
    model = ["--encoder", "ViT-S-32-alt", "--weights", "random:1", "--head", "random:1", "--device", "cpu"]
    return ["run", *arguments, *model, "--batch-size", "8"]


def test_a_run_writes_the_documented_files(shards_dir: Path, tmp_path: Path) -> None:
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


def test_an_input_expanded_by_the_shell_is_taken_whole(shards_dir: Path, tmp_path: Path) -> None:
    expanded = [shards_dir / "00000.tar", shards_dir / "00001.tar"]
    done = invoke(*tiny("--output", tmp_path / "out", "--input", *expanded))
    assert done.exit_code == 0, done.stderr
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 2


WRONG = [
    (["--input", "{here}", "--threshold", "5"], "did you mean --raw-threshold 5"),
    (["--input", "{here}", "--threshold", "0.5", "--preset", "high"], "--threshold and --preset"),
    (["--input", "{here}/none-{00..03}.tar"], "none-"),
    (["--input", "{here}/nothing"], "nothing"),
    ([], "input is missing: give --input"),
    (["--input", "{here}", "--device", "gpu"], "--device gpu: give one of auto, cpu, cuda"),
    (["--input", "{here}", "--config", "{here}/none.yaml"], "none.yaml"),
    (["--input", "{here}", "--encoder", "RN50"], "RN50"),
    (["--input", "{here}", "--precision", "fp16", "--device", "cpu"], "fp16 needs a GPU"),
]


def wrong(arguments: list[str], shards_dir: Path, tmp_path: Path) -> list[object]:
    filled = [argument.replace("{here}", str(shards_dir)) for argument in arguments]
    return ["run", "--output", tmp_path / "out", "--weights", "random:1", "--head", "random:1", *filled]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_configuration_is_exit_2_and_one_message(
    shards_dir: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = invoke(*wrong(arguments, shards_dir, tmp_path))
    assert done.exit_code == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_shell_sees_exit_2_and_one_message(shards_dir: Path, tmp_path: Path) -> None:
    arguments, message = WRONG[0]
    done = call(*wrong(arguments, shards_dir, tmp_path))
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_missing_weights_are_exit_2_with_the_command_that_gets_them(shards_dir: Path, tmp_path: Path) -> None:
    done = call(
        "run", "--input", shards_dir, "--output", tmp_path / "out", "--device", "cpu",
        HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path), HOME=str(tmp_path),
    )  # fmt: skip
    text = " ".join(done.stderr.split())
    assert done.returncode == 2
    assert "sha256" in text
    assert "dali-aesthetic download --encoder ViT-L-14" in text
    assert not (tmp_path / "out").exists()


def test_download_prints_each_file_and_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing to download" in invoke("download", "--weights", "random", "--head", "random:1").stderr
    path = tmp_path / "[bold] models" / ("long" * 30) / "head.safetensors"
    file = ResolvedFile(name="head.safetensors", source="", sha256="0" * 64, path=str(path))
    monkeypatch.setattr(weights, "download", lambda *arguments: [file])
    assert invoke("download").stderr.split("  ")[2] == f"{path}\n"


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
        "model": {"encoder": "ViT-S-32-alt", "weights": "random:1", "heads": ["random:1"]},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    output = tmp_path / "from-flag"
    done = invoke("run", "--config", tmp_path / "run.yaml", "--output", output, "--preset", "permissive")
    assert done.exit_code == 0, done.stderr
    assert not (tmp_path / "from-file").exists()
    assert "raw score >= 3" in done.stderr


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ({"max_unit": 0.9}, {"preset": "high", "max_unit": 0.9}),
        ({"raw": 4.0}, {"raw": 4.0, "max_raw": 8.0}),
        ({"unit": None}, {"preset": "high", "max_raw": 8.0}),
    ],
)
def test_a_flag_replaces_other_spellings_of_its_own_bound_only(
    flags: dict[str, object], fields: dict[str, object]
) -> None:
    file = {"threshold": {"preset": "high", "max_raw": 8.0}}
    assert merge(file, {"threshold": flags}) == {"threshold": fields}


@pytest.mark.parametrize("name", ["", "absent.yaml"])
def test_a_config_file_that_cannot_be_read_is_named_once_with_the_fix(tmp_path: Path, name: str) -> None:
    done = invoke("run", "--config", tmp_path / name)
    assert done.exit_code == 2
    assert done.stderr.count(str(tmp_path / name)) == 1
    assert "give a YAML file or the run.json of an output" in done.stderr
    assert "Errno" not in done.stderr


def test_a_config_file_that_is_not_utf8_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"output: caf\xe9\n")
    done = invoke("run", "--config", tmp_path / "run.yaml")
    assert done.exit_code == 2
    assert f"--config {tmp_path / 'run.yaml'}: " in done.stderr


def flags_of(command: str) -> set[str]:
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    return {flag for parameter in parameters for flag in parameter.opts if flag.startswith("--")}


def test_run_keeps_the_flags_that_scripts_use() -> None:
    """To remove one, take it from this list and add a line to the changelog."""
    assert flags_of("run") >= FLAGS


FLAGS = {
    "--input", "--output", "--threshold", "--raw-threshold", "--preset", "--encoder", "--weights", "--head",
    "--model-dir", "--device", "--precision", "--backend", "--batch-size", "--num-threads", "--config",
    "--apply-exif", "--max-bad-fraction", "--quarantine", "--stall-timeout", "--memory-budget", "--verbose",
    "--image-column", "--save-embeddings", "--keep-top", "--max-threshold", "--max-raw-threshold",
    "--quiet", "--json", "--gpus", "--workers", "--engine", "--metrics-port", "--metrics-host", "--log-json",
    "--wandb",
}  # fmt: skip


def test_help_and_version_do_not_import_torch_and_help_shows_defaults() -> None:
    code = "import sys; from dali_aesthetic.cli import app; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert call("--version").stdout.strip()
    text = " ".join(call("run", "--help", COLUMNS="200").stdout.split())
    assert "--raw-threshold" in text
    default = ModelConfig()
    assert f"(default: {default.encoder})" in text
    assert f"(default: {default.weights})" in text


def test_every_command_has_an_example_in_its_help() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands) >= 12
    assert not [name for name, command in commands.items() if "dali-aesthetic " + name not in command.epilog]


def test_quiet_prints_nothing_on_success(shards_dir: Path, tmp_path: Path) -> None:
    """In a process of its own, so that output of native libraries counts too."""
    done = call(*tiny("--input", shards_dir / "00001.tar", "--output", tmp_path, "--quiet"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def lines_of_log(text: str) -> list[str]:
    """The lines of a log that begin with date and time, without these."""
    stamped = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (.*)")
    return [found[1] for line in text.splitlines() if (found := stamped.fullmatch(line))]


def test_a_log_file_shows_start_progress_and_failures_while_a_run_works(
    shards_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.tar").write_text("no tar " * 200)
    inputs = ["--input", shards_dir / "00000.tar", "--input", tmp_path / "bad.tar"]
    out = tmp_path / "an output with a name longer than the eighty columns of a terminal" / "kept"
    with (tmp_path / "log").open("w") as log:
        arguments = tiny(*inputs, "--output", out, "--log-interval", "0.01")
        command = [sys.executable, "-m", "dali_aesthetic", *map(str, arguments)]
        assert subprocess.run(command, stderr=log, check=False).returncode == 1
    lines = lines_of_log((tmp_path / "log").read_text())
    assert lines[0].startswith("loading ")
    (start,) = [line for line in lines if line.startswith("scoring ")]
    for part in ("2 shards", "ViT-S-32-alt", "fp32", "CPU", f"into {out}"):
        assert part in start
    progress = [line for line in lines if "images/s" in line]
    for part in ("/2 shards", "images", "kept", "bad"):  # and what bounds it, once there were images
        assert part in progress[-1]
    (failed,) = [line for line in lines if line.startswith("failed ")]
    assert f"{tmp_path / 'bad.tar'}: " in failed
    assert lines.index(start) < lines.index(failed)


def test_a_terminal_says_what_is_loading_before_the_bar_comes(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_text("no tar " * 200)
    terminal, end = pty.openpty()
    arguments = tiny("--input", tmp_path / "bad.tar", "--output", tmp_path / "out")
    command = [sys.executable, "-m", "dali_aesthetic", *map(str, arguments)]
    with subprocess.Popen(command, stderr=end) as running:
        os.close(end)
        first = os.read(terminal, 100)
        assert first == b"loading the libraries\r\n"
        assert not (tmp_path / "out").exists(), "it comes before anything is done"
        text = b"".join(iter(partial(_read, terminal), b"")).decode()
    os.close(terminal)
    assert running.returncode == 1
    assert (
        text.index("loading ViT-S-32-alt")
        < text.index("scoring with ViT-S-32-alt")
        < text.index("0/1 shards")
    )


def _read(terminal: int) -> bytes:
    """What comes next, or nothing where the other end is closed."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def test_a_log_interval_of_an_hour_leaves_start_and_failures(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_text("no tar " * 200)
    where = ("--input", tmp_path / "bad.tar", "--output", tmp_path / "out", "--log-interval", 3600)
    lines = lines_of_log(invoke(*tiny(*where)).stderr)
    assert [line.split()[0] for line in lines] == ["loading", "listing", "loading", "scoring", "failed"]


def test_quiet_prints_failures(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_text("no tar " * 200)
    done = invoke(*tiny("--input", tmp_path / "bad.tar", "--output", tmp_path / "out", "--quiet"))
    assert done.exit_code == 1
    assert "bad.tar" in done.stderr


def test_json_prints_the_summary_as_json(shards_dir: Path, tmp_path: Path) -> None:
    where = ("--input", shards_dir / "00001.tar", "--output", tmp_path)
    said = json.loads(invoke(*tiny(*where, "--json", "--raw-threshold", "-1000")).stdout)
    assert (said["samples"], said["kept"], said["committed"]) == (10, 8, 1)
    assert said["statuses"] == {"ok": 8, "truncated": 1, "empty": 1}
    assert said["min_raw"] == -1000


@pytest.mark.parametrize("silent", ["--json", "--quiet"])
def test_json_and_quiet_leave_standard_error_empty_in_a_log_file(
    silent: str, shards_dir: Path, tmp_path: Path
) -> None:
    where = ("--input", shards_dir / "00001.tar", "--output", tmp_path, "--log-interval", "0.01")
    done = invoke(*tiny(*where, silent))
    assert (done.exit_code, done.stderr) == (0, "")
    assert silent == "--quiet" or json.loads(done.stdout)["committed"] == 1
