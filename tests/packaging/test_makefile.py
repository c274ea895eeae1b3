"""The Makefile installs what fits the driver, repairs a broken environment and passes paths unchanged."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PYTORCH = "pip install --quiet --index-url https://download.pytorch.org/whl/cu128 torch torchvision"
BOTH = "pip uninstall --yes -qq nvidia-dali-cuda120 nvidia-dali-cuda130"
PYTHON = """#!/bin/sh
echo "$@" >> {log}
case "$1 $2 $3" in
  "-m venv --clear") rm -r "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python";;
  "-m venv "*) mkdir -p "$3/bin"; : > "$3/pyvenv.cfg"; cp "$0" "$3/bin/python";;
  "-m pip show") for last; do :; done; test -e "{folder}/$last" && echo "Version: $(cat "{folder}/$last")";;
  "-m dali_aesthetic "*) for word; do echo "<$word>"; done >> {log};;
esac
"""
"""Stands for Python outside and inside the environment; it only logs its arguments."""


def installs(folder: Path, driver: str | None, *arguments: str) -> str:
    """The pip line that `make run` would run in a fresh clone, with a driver of this version or none."""
    (line,) = [line for line in dry_run(folder, driver, *arguments) if "--editable" in line]
    return line


def make(folder: Path, *arguments: str, driver: str | None = None) -> list[str]:
    """The arguments that `make run` gives Python; an installed package is a file in `folder`."""
    python, log = folder / "python", folder / "log"
    python.write_text(PYTHON.format(log=log, folder=folder))
    python.chmod(0o755)
    log.write_text("")
    done = subprocess.run(
        command(folder, f"PYTHON={python}", *arguments, "run"), env=environment(folder, driver),
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return log.read_text().splitlines()


def dry_run(folder: Path, driver: str | None, *arguments: str) -> list[str]:
    done = subprocess.run(
        command(folder, "--dry-run", *arguments, "run"), env=environment(folder, driver),
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.replace("\\\n", " ").splitlines()


def command(folder: Path, *arguments: str) -> list[str]:
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    return ["make", "-f", str(REPOSITORY / "Makefile"), f"VENV={folder / 'venv'}", *arguments]


def environment(folder: Path, driver: str | None) -> dict[str, str]:
    """An environment with a driver of this version or none, without the variables that make reads."""
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n" if driver is None else f"#!/bin/sh\necho {driver}\necho {driver}\n")
    tool.chmod(0o755)
    taken = ("CUDA", "MAKEFLAGS", "MAKELEVEL", "VENV", "TORCH_INDEX", "INPUT", "OUTPUT", "THRESHOLD", "FLAGS")
    kept = {name: value for name, value in os.environ.items() if name not in taken}
    return kept | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


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
def test_the_driver_selects_the_cuda_build(
    tmp_path: Path, driver: str | None, extra: str, from_pytorch: bool
) -> None:
    asked = make(tmp_path, driver=driver)
    (last,) = [line for line in asked if "--editable" in line]
    assert f".[{extra},demo]" in last
    assert "index" not in last
    before = [line for line in asked[: asked.index(last)] if "torch torchvision" in line]
    assert [line.removeprefix("-m ") for line in before if "install --quiet" in line] == [
        PYTORCH
    ] * from_pytorch


def test_the_cuda_variable_overrides_the_driver(tmp_path: Path) -> None:
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
def test_threshold_and_flags_reach_the_command(
    tmp_path: Path, arguments: tuple[str, ...], threshold: str
) -> None:
    lines = dry_run(tmp_path, None, "INPUT=in", "OUTPUT=out", *arguments)
    (line,) = [line for line in lines if "dali_aesthetic run" in line]
    assert " ".join(line.partition('--output "$RUN_OUTPUT"')[2].split()) == threshold


@pytest.mark.parametrize("path", ["data/{00000..00123}.tar", "it's", "two words", "a$b", "$(x)", '"', "a,b)"])
def test_paths_reach_the_command_unchanged(tmp_path: Path, path: str) -> None:
    asked = make(tmp_path, f"INPUT={path}", f"OUTPUT={path}/kept")
    assert asked[-4:] == ["<--input>", f"<{path}>", "<--output>", f"<{path}/kept>"]


@pytest.mark.parametrize("arguments", [["OUTPUT=kept"], ["THRESHOLD=0.5"], ["INPUT= ", "OUTPUT=kept"]])
def test_output_or_threshold_without_input_is_an_error(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        command(tmp_path, *arguments, "run"), env=environment(tmp_path, None),
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "INPUT is missing" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_second_call_reuses_the_environment(tmp_path: Path) -> None:
    first = make(tmp_path)
    assert "-m venv" in " ".join(first)
    assert sum("install" in line for line in first) == 2  # pip's own upgrade, and the package
    assert [line for line in make(tmp_path) if line.startswith("-m")] == ["-m dali_aesthetic demo"]


def test_an_environment_without_pip_is_recreated(tmp_path: Path) -> None:
    broken = tmp_path / "venv" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    broken.write_text("#!/bin/sh\n[ $2 != pip ] && [ $2 != ensurepip ]\n")
    broken.chmod(0o755)
    assert f"-m venv --clear {tmp_path / 'venv'}" in make(tmp_path)


def test_an_environment_with_pip_is_kept(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "venv" / ".setup").unlink()
    asked = make(tmp_path)
    assert "-m venv" not in " ".join(asked)
    assert sum("install" in line for line in asked) == 1


def test_another_cuda_replaces_the_build_of_dali(tmp_path: Path) -> None:
    assert BOTH not in " ".join(make(tmp_path))
    (tmp_path / "nvidia-dali-cuda120").write_text("2.4.0")
    assert "install" not in " ".join(make(tmp_path, "CUDA=cuda12"))
    asked = [line for line in make(tmp_path, "CUDA=cuda13") if "install" in line]
    assert BOTH in asked[0]
    assert asked[1].endswith(".[cuda13,demo]")
    assert "install" not in " ".join(make(tmp_path))  # without CUDA= the installed build stays


def test_an_old_driver_replaces_the_torch_of_pypi(tmp_path: Path) -> None:
    (tmp_path / "torch").write_text("2.14.0")
    assert "-m pip uninstall --yes -qq torch torchvision" in make(tmp_path, driver="570.10")
    (tmp_path / "torch").write_text("2.11.0+cu128")
    (tmp_path / "venv" / ".run").unlink()
    assert "torch torchvision" not in " ".join(make(tmp_path, driver="570.10"))


def test_a_moved_clone_is_linked_again(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "venv" / ".setup").write_text("cuda12 /elsewhere\n")
    assert sum("--editable" in line for line in make(tmp_path)) == 1
    assert "install" not in " ".join(make(tmp_path))
