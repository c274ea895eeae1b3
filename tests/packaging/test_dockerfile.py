"""Checks the Dockerfile without a container engine: its text, its sources and its commands."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dali_aesthetic.write.lock import OutputUnwritable, claim
from tests.docs.commands import ROOT, Wrong, check, commands_of, image_entrypoint, parse_flags
from tests.docs.commands import Block as Fence

DOCKERFILE = ROOT / "Dockerfile"


def instructions(text: str) -> list[tuple[str, str]]:
    """Name and argument of each instruction, continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in joined.splitlines() if line]


INSTRUCTIONS = instructions(DOCKERFILE.read_text())


def arguments(name: str) -> list[str]:
    return [argument for found, argument in INSTRUCTIONS if found == name]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint on this machine: its wheel is for Linux and macOS, x86-64 and arm64")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps `path` (or a folder above it) out; the last pattern that fits decides."""
    found = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!").removeprefix("**/")
        above = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
        parts = above + ([] if "**/" not in line else list(Path(path).parts))
        if any(fnmatch.fnmatch(part, pattern) for part in parts):
            found = not line.strip().startswith("!")
    return found


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    sources = [source for argument in arguments("COPY") for source in shlex.split(argument)[:-1]]
    assert "dali_aesthetic" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


def test_the_files_of_the_build_backend_are_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    copied = {source for argument in arguments("COPY") for source in shlex.split(argument)}
    assert {"pyproject.toml", project["readme"], "LICENSE", "dali_aesthetic"} <= copied


def test_other_folders_stay_out_of_the_build_context() -> None:
    for path in (".git", ".venv", "tests", "benchmarks", "docs", "dali_aesthetic/score/__pycache__"):
        assert ignored(path), path


@pytest.mark.parametrize("cuda", ["12", "13"])
def test_each_cuda_has_a_stage_an_extra_and_a_torch(cuda: str) -> None:
    (stage,) = [image for image in arguments("FROM") if image.endswith(f"AS cuda{cuda}")]
    assert stage.startswith(f"nvidia/cuda:{cuda}.")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"cuda{cuda}" in extras
    position = INSTRUCTIONS.index(("FROM", stage))
    assert re.fullmatch(rf"TORCH_INDEX=https://\S+/cu{cuda}\d", INSTRUCTIONS[position + 1][1])
    assert "cuda${CUDA} AS runtime" in arguments("FROM")


def test_the_extra_named_in_the_dockerfile_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.findall(r"EXTRAS=,(\w+)", DOCKERFILE.read_text()) == ["hopper"]
    assert "hopper" in extras


def test_entrypoint_health_check_and_bake_step_are_valid_commands() -> None:
    assert image_entrypoint() == ["dali-aesthetic", "run", "--model-dir", "/models"]
    (health,) = arguments("HEALTHCHECK")
    words = json.loads(health[health.index("[") :])
    assert words[:2] == ["dali-aesthetic", "doctor"]
    parse_flags(tuple(words[1:]))
    (bake,) = re.findall(r"then (dali-aesthetic [^;]*);", DOCKERFILE.read_text())
    parse_flags(tuple(bake.split()[1:]))
    parse_flags((*image_entrypoint()[1:], *json.loads(arguments("CMD")[-1])))


def test_the_docker_commands_in_the_header_comment_are_valid() -> None:
    head = re.match(r"(?:#.*\n)+", DOCKERFILE.read_text())
    assert head is not None
    text = head[0].replace("# ", "").replace("#", "")
    calls = [c for c in commands_of(Fence("sh", _only_docker(text), 1)) if c.program == "docker"]
    assert [call.words[1] for call in calls] == ["build", "run"]
    for call in calls:
        try:
            check(call)
        except Wrong as error:
            pytest.fail(f"{' '.join(call.words)}: {error}")


def _only_docker(text: str) -> str:
    """The docker commands of a comment, without the explanations beside them."""
    joined = text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.startswith("docker")]
    return "\n".join(line.split(".   ")[0] + " ." if ".   " in line else line for line in lines)


def test_the_container_runs_as_an_unprivileged_user() -> None:
    (user,) = arguments("USER")
    assert user.isdecimal()
    assert int(user) > 0
    made = re.search(r"useradd .*--uid (\d+)", DOCKERFILE.read_text())
    assert made is not None
    assert made[1] == user
    assert [name for name, _ in INSTRUCTIONS].index("USER") < [n for n, _ in INSTRUCTIONS].index("ENTRYPOINT")


@pytest.mark.parametrize("below", ["", "kept"])
def test_an_unwritable_output_is_reported_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, below: str
) -> None:
    """The refusal is simulated, because permissions don't stop a root user who runs the tests."""

    def refuse(path: object, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("dali_aesthetic.write.lock.os.open", refuse)
    monkeypatch.setattr("dali_aesthetic.write.lock.Path.mkdir", refuse if below else lambda *_, **__: None)
    output = tmp_path / below
    with pytest.raises(OutputUnwritable) as caught, claim(output):
        pass
    assert str(caught.value).startswith(
        f"{output} can't be written (Permission denied): {tmp_path} belongs to"
    )
    assert f"this process is uid {os.getuid()};" in str(caught.value)
    assert 'docker run --user "$(id -u):$(id -g)"' in str(caught.value)
