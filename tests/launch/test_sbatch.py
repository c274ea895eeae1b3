"""The example of a Slurm job: a shell can read it, and the command line knows what it gives."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from dali_aesthetic.config import Config
from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "configs" / "slurm.sbatch"


def command_line() -> list[str]:
    """The words after srun and its own options."""
    text = SCRIPT.read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    words = shlex.split(line.replace("$THRESHOLD", "0.45"))
    return words[words.index("dali-aesthetic") + 1 :]


def test_the_batch_script_parses_and_names_a_missing_variable() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    missing = subprocess.run(
        ["bash", str(SCRIPT)], capture_output=True, text=True, env={"PATH": "/bin:/usr/bin"}
    )
    assert missing.returncode != 0
    assert "set INPUT" in missing.stderr


def test_srun_starts_a_valid_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(
        "dali_aesthetic.commands.run._run", lambda config, print_config, verbosity: seen.append(config) or 0
    )
    result = CliRunner().invoke(app, command_line())
    assert result.exit_code == 0, result.output
    (config,) = seen
    assert (config.launch.engine, config.launch.gpus, config.launch.workers) == ("local", "all", None)
    assert (config.input, config.output) == (("$INPUT",), "$OUTPUT")
    assert (config.threshold.unit, config.observe.log_interval) == (0.45, 60.0)


def test_the_batch_script_passes_its_variables_to_the_command(tmp_path: Path) -> None:
    (tmp_path / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    environ = {
        "PATH": f"{tmp_path}:/bin:/usr/bin",
        "INPUT": "@a list.txt",
        "OUTPUT": "out",
        "HOME": "/home/x",
    }
    ran = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, env=environ, check=True)
    words = ran.stdout.splitlines()
    assert words[words.index("--input") + 1] == "@a list.txt"
    assert words[words.index("--model-dir") + 1] == "/home/x/models"
    assert words[words.index("--threshold") + 1] == "0.6"
    assert "--label" in words[: words.index("dali-aesthetic")], "the tasks share one log"
    environ["THRESHOLD"] = "0.45"
    ran = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, env=environ, check=True)
    assert ran.stdout.splitlines()[words.index("--threshold") + 1] == "0.45"


def test_each_task_has_a_node_of_its_own() -> None:
    options = dict(
        line.removeprefix("#SBATCH --").split("=")
        for line in SCRIPT.read_text().splitlines()
        if line.startswith("#SBATCH --") and "=" in line
    )
    assert options["ntasks-per-node"] == "1", "--gpus all starts the processes of a node"
    assert int(options["cpus-per-task"]) >= 2 * int(options["gpus-per-node"])
