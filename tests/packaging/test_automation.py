"""The pre-commit hooks and the CI workflow run what the Makefile runs, with the project's own tools."""

from __future__ import annotations

import re
import shlex
import tomllib
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

MAKEFILE = (REPOSITORY / "Makefile").read_text()
HOOKS = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
WORKFLOW = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def linters() -> list[list[str]]:
    """The words after `python -m` in each line of `make lint`."""
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    return [line.split()[2:] for line in recipe[1].splitlines()]


def hooks() -> list[dict[str, Any]]:
    (repository,) = HOOKS["repos"]
    assert repository["repo"] == "local", "a mirror would pin a second version beside the environment's"
    found: list[dict[str, Any]] = repository["hooks"]
    return found


def test_the_hooks_run_the_linters_of_make_lint_in_its_environment() -> None:
    (environment,) = re.findall(r"^VENV \?= (\S+)$", MAKEFILE, re.MULTILINE)
    on_files = [[word for word in words if word != "."] for words in linters()]
    entries = [shlex.split(hook["entry"]) for hook in hooks()]
    assert {entry[0] for entry in entries} == {f"{environment}/bin/python"}
    assert [[word for word in entry[2:] if word != "--force-exclude"] for entry in entries] == on_files


@pytest.mark.parametrize("tool", ["ruff", "mypy"])
def test_the_dev_extra_installs_the_tool_of_a_hook(tool: str) -> None:
    assert any(tool in hook["entry"].split() for hook in hooks())
    names = [re.split(r"[^\w-]", requirement)[0] for requirement in PROJECT["optional-dependencies"]["dev"]]
    assert tool in names


def test_mypy_checks_the_whole_package_and_not_the_files_of_a_commit() -> None:
    (mypy,) = [hook for hook in hooks() if hook["id"] == "mypy"]
    assert mypy["pass_filenames"] is False


def test_the_workflow_runs_make_test_with_variables_of_the_makefile() -> None:
    commands = [shlex.split(step["run"]) for step in WORKFLOW["jobs"]["test"]["steps"] if "run" in step]
    (call,) = [words for words in commands if words[:2] == ["make", "test"]]
    for word in call[2:]:
        assert re.search(rf"^{word.partition('=')[0]} \?=", MAKEFILE, re.MULTILINE), word


def test_the_workflow_starts_with_the_oldest_supported_python() -> None:
    versions = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert all(isinstance(version, str) for version in versions), "YAML reads an unquoted 3.10 as 3.1"
    assert f">={versions[0]}" == PROJECT["requires-python"]


def test_the_workflow_may_only_read_the_repository() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "permissions" not in WORKFLOW["jobs"]["test"]


def test_a_new_push_cancels_the_run_of_the_one_before_it() -> None:
    assert "github.ref" in WORKFLOW["concurrency"]["group"]
    assert "cancel-in-progress" in WORKFLOW["concurrency"]
