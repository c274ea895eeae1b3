"""The Makefile installs the builds that fit the driver."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PYTORCH = "--extra-index-url https://download.pytorch.org/whl/cu128"


def installs(folder: Path, driver: str | None, *arguments: str) -> str:
    """The pip line that `make run` would run in a fresh clone, with a driver of this version or none."""
    (line,) = [line for line in dry_run(folder, driver, *arguments) if "--editable" in line]
    return line


def dry_run(folder: Path, driver: str | None, *arguments: str) -> list[str]:
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n" if driver is None else f"#!/bin/sh\necho {driver}\necho {driver}\n")
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    for name in ("CUDA", "MAKEFLAGS", "MAKELEVEL", "VENV", "TORCH_INDEX", "THRESHOLD", "FLAGS"):
        environment.pop(name, None)
    command = ["make", "--dry-run", f"VENV={folder / 'venv'}", *arguments, "run"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize(
    ("driver", "extra", "from_pytorch"),
    [
        ("580.65.06", "cuda13", False),
        ("595.10", "cuda13", False),
        ("570.124.06", "cuda12", True),
        ("535.10", "cuda12", True),
        (None, "cuda12", False),
    ],
)
def test_the_driver_decides(tmp_path: Path, driver: str | None, extra: str, from_pytorch: bool) -> None:
    line = installs(tmp_path, driver)
    assert f".[{extra},demo]" in line
    assert (PYTORCH in line) == from_pytorch


def test_who_says_which_gets_it(tmp_path: Path) -> None:
    assert ".[cuda12,demo]" in installs(tmp_path, "580.65", "CUDA=cuda12")
    assert ".[cuda13,demo]" in installs(tmp_path, None, "CUDA=cuda13")


@pytest.mark.parametrize(
    ("arguments", "threshold"),
    [
        ((), ""),
        (("THRESHOLD=0.6",), "--threshold 0.6"),
        (("FLAGS=--config run.yaml",), "--config run.yaml"),
        (("THRESHOLD=0.6", "FLAGS=--max-threshold 0.9"), "--threshold 0.6 --max-threshold 0.9"),
    ],
)
def test_the_cut_is_the_one_that_was_given(
    tmp_path: Path, arguments: tuple[str, ...], threshold: str
) -> None:
    lines = dry_run(tmp_path, None, "INPUT=in", "OUTPUT=out", *arguments)
    (line,) = [line for line in lines if "dali-aesthetic run" in line]
    assert " ".join(line.partition("--output 'out'")[2].split()) == threshold
