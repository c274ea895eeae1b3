"""Wheel and sdist are built once, checked for their contents and started from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import dali_aesthetic
from tests.docs.commands import ROOT

NAME = f"dali_aesthetic-{dali_aesthetic.__version__}"


def python(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel that is made from it."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling", reason="the build backend, used in place: a test installs nothing")
    folder = tmp_path_factory.mktemp("dist")
    done = python("-m", "build", "--no-isolation", "--outdir", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the unpacked wheel and nothing else; dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    done = python("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", folder, wheel)
    assert done.returncode == 0, done.stderr
    return folder


def test_twine_accepts_wheel_and_sdist(built: Path) -> None:
    pytest.importorskip("twine")
    done = python("-m", "twine", "check", "--strict", *built.iterdir())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"dali_aesthetic", f"{NAME}.dist-info"}
    package = ROOT / "dali_aesthetic"
    sources = {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("dali_aesthetic/")} == sources
    assert "dali_aesthetic/py.typed" in sources


def test_licence_and_readme_are_in_the_wheel(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    licence = archive.read(f"{NAME}.dist-info/licenses/LICENSE").decode()
    metadata = archive.read(f"{NAME}.dist-info/METADATA").decode()
    assert licence == (ROOT / "LICENSE").read_text()
    assert "License-Expression: Apache-2.0" in metadata
    assert metadata.endswith((ROOT / "README.md").read_text())


def test_the_sdist_holds_the_tests_and_no_untracked_files(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "dali_aesthetic/cli.py", "tests/conftest.py"} <= names
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode == 0:  # a source archive has no repository
        hidden = {name.split("/")[0] for name in names if name.startswith(".")}
        assert hidden <= {name.split("/")[0] for name in tracked.stdout.split()}


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"]])
def test_the_command_starts_from_the_wheel_alone(
    installed: Path, tmp_path: Path, arguments: list[str]
) -> None:
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); import dali_aesthetic as package; "
        "print(package.__file__, file=sys.stderr); runpy.run_module('dali_aesthetic', run_name='__main__')"
    )
    done = python("-c", code, installed, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(installed) in done.stderr
    expected = {"--version": dali_aesthetic.__version__, "--help": "dali-aesthetic", "run": "--threshold"}
    assert expected[arguments[0]] in done.stdout or "Usage" in done.stdout


def test_data_files_that_modules_read_are_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    done = python(
        *("-c", "import sys; sys.path.insert(0, sys.argv[1]); import dali_aesthetic.cost as p;"
          "print(p.make_plan(1e6, 1, 'h100', None, 100, 0.25).as_text())", installed),
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed_for_each_shell(tmp_path: Path, shell: str) -> None:
    variable = {"_DALI_AESTHETIC_COMPLETE": f"source_{shell}"}
    done = python("-c", COMPLETE, cwd=tmp_path, **variable)
    assert done.returncode == 0, done.stderr
    assert "_DALI_AESTHETIC_COMPLETE" in done.stdout


def test_completion_offers_commands(tmp_path: Path) -> None:
    environment = {"COMP_WORDS": "dali-aesthetic do", "COMP_CWORD": "1"}
    done = python("-c", COMPLETE, cwd=tmp_path, _DALI_AESTHETIC_COMPLETE="complete_bash", **environment)
    assert done.stdout.split() == ["download", "doctor"] or set(done.stdout.split()) == {"download", "doctor"}


COMPLETE = "import sys; sys.argv[0] = 'dali-aesthetic'; from dali_aesthetic.cli import main; main()"
"""The code of the console script."""


def test_the_citation_file_names_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"authors", "cff-version", "message", "title"} <= set(citation), "required by the format"
    assert citation["version"] == dali_aesthetic.__version__
    assert citation["license"] == "Apache-2.0"
