"""Finds the commands in the fenced blocks of the documents and checks them without running them."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import typer
from typer.core import TyperGroup

from benchmarks.__main__ import app as benchmarks
from dali_aesthetic.cli import app

ROOT = Path(__file__).parents[2]
IMAGE = "dali-aesthetic"
"""The name of the container image in the documents."""
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_NETWORK = ("s3://", "gs://", "hf://", "http://", "https://")
_DEVICE = {
    "--gpus": ("all",),
    "--device": ("cuda",),
    "--precision": ("fp16", "fp8"),
    "--backend": ("torchscript", "fused"),
}
_DOCKER_FLAGS = {"--rm": 0, "--gpus": 1, "-v": 1, "--user": 1, "--entrypoint": 1, "-e": 1}
_UsageError = typer.BadParameter.__mro__[1]
"""click's class; newer versions of typer vendor a copy of it."""


class Wrong(ValueError):
    """A document shows a command that can't work."""


@dataclass(frozen=True)
class Block:
    """A fenced block. An untagged block that begins with a command has the language `sh`."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A command of a shell block, with the variables set before it and the file its output goes to."""

    words: tuple[str, ...]
    line: int
    variables: dict[str, str] = field(default_factory=dict)
    redirect: str = "/dev/null"

    @property
    def program(self) -> str:
        return self.words[0]

    def reads(self, folder: str) -> bool:
        """Whether `folder` is an argument other than the output."""
        return any(word == folder and flag != "--output" for flag, word in pairwise(self.words))

    def why_not_run(self) -> str:
        """The requirement that a test machine lacks, or an empty string."""
        if self.program in ("docker", "make", "pip", "sbatch", "torchrun"):
            return self.program
        if self.words[:3] == ("python", "-m", "benchmarks"):
            return "minutes of a machine of its own"
        if self.words[1:2] in (("download",), ("push",)) or any(
            word.startswith(_NETWORK) for word in self.words
        ):
            return "network"
        for flag, value in pairwise(self.words):
            if value in _DEVICE.get(flag, ()):
                return "GPU"
        return "a shell" if any("completion" in word for word in self.words) else ""


def blocks(document: Path) -> Iterator[Block]:
    """The fenced blocks of a document."""
    text = document.read_text()
    for match in _FENCE.finditer(text):
        language, content = match.groups()
        first = content.split(maxsplit=1)[0] if content.strip() else ""
        if language == "" and first in CHECKS:
            language = "sh"
        yield Block(language, content, text[: match.start()].count("\n") + 2)


def commands(document: Path) -> list[Command]:
    """The commands of a document's shell blocks, in order."""
    return [command for block in blocks(document) for command in commands_of(block)]


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a block: none unless it is a shell block."""
    if block.language != "sh":
        return
    joined = block.text.replace("\\\n", " ")
    for line in joined.splitlines():
        words = shlex.split(line.removesuffix("&"), comments=True)
        variables = {}
        while words and (match := _VARIABLE.fullmatch(words[0])):
            variables[match[1]] = match[2]
            words = words[1:]
        words, target = (words[:-2], words[-1]) if {">", "2>"} & set(words) else (words, "/dev/null")
        if words:
            yield Command(tuple(words), block.line, variables, target)


def check(command: Command) -> None:
    """Raises Wrong for a command with an unknown program, flag, file or name."""
    if command.program not in CHECKS:
        raise Wrong(f"unknown program {command.program!r}")
    CHECKS[command.program](command.words[1:])


def parse_flags(arguments: tuple[str, ...], program: typer.Typer = app) -> None:
    """Parses the arguments of `dali-aesthetic`, or of another program, without running it."""
    group = typer.main.get_command(program)
    assert isinstance(group, TyperGroup)
    name, *rest = arguments
    if name.startswith("--"):
        if name not in {flag for parameter in group.params for flag in parameter.opts}:
            raise Wrong(f"unknown flag {name}")
        return
    if name not in group.commands:
        raise Wrong(f"unknown command {name!r}")
    try:
        group.commands[name].make_context(name, list(rest))
    except typer.Exit:  # --help
        return
    except _UsageError as error:
        raise Wrong(str(error)) from error


def _check_python(arguments: tuple[str, ...]) -> None:
    if arguments[:2] == ("-m", "dali_aesthetic"):
        return parse_flags(arguments[2:])
    if arguments[:2] == ("-m", "benchmarks"):
        return parse_flags(arguments[2:], benchmarks)
    module = arguments[0] == "-m"
    file = ROOT / (f"{arguments[1]}/__main__.py" if module else arguments[0])
    if not file.exists() and not (ROOT / "examples" / arguments[0]).exists():
        raise Wrong(f"no {arguments[0]}")
    return None


def _check_docker(arguments: tuple[str, ...]) -> None:
    verb, *rest = arguments
    if verb == "build":
        return _check_docker_build(rest)
    if verb != "run":
        raise Wrong(f"docker {verb}")
    entrypoint: list[str] | None = None
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0)
        if flag not in _DOCKER_FLAGS:
            raise Wrong(f"docker run {flag}")
        values = [rest.pop(0) for _ in range(_DOCKER_FLAGS[flag])]
        if flag == "--entrypoint":
            entrypoint = values
    if not rest or rest.pop(0) != IMAGE:
        raise Wrong(f"docker run of another image than {IMAGE}")
    whole = [*(entrypoint or image_entrypoint()), *rest]
    if whole[0] != "dali-aesthetic":
        raise Wrong(f"the container starts {whole[0]}")
    return parse_flags(tuple(whole[1:]))


def _check_docker_build(rest: list[str]) -> None:
    arguments = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    while rest:
        word = rest.pop(0)
        if word == "-t":
            if rest.pop(0) != IMAGE:
                raise Wrong(f"the image is called {IMAGE}")
        elif word == "--build-arg":
            if (name := rest.pop(0).partition("=")[0]) not in arguments:
                raise Wrong(f"the Dockerfile has no ARG {name}")
        elif word != ".":
            raise Wrong(f"docker build {word}")


def image_entrypoint() -> list[str]:
    """The image's entry point; arguments are appended to it."""
    import json

    (line,) = re.findall(r"^ENTRYPOINT (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    words: list[str] = json.loads(line)
    return words


def _check_make(arguments: tuple[str, ...]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in arguments:
        name, is_variable, _ = word.partition("=")
        pattern = rf"^{name} \?=" if is_variable else rf"^{name}:"
        if not re.search(pattern, makefile, re.MULTILINE):
            raise Wrong(f"the Makefile has no {name}")


def _check_pip(arguments: tuple[str, ...]) -> None:
    if arguments[0] not in ("install", "uninstall"):
        raise Wrong(f"pip {arguments[0]}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in arguments:
        if match := re.fullmatch(r"(?:dali-aesthetic|\.)\[(.*)\]", word):
            for extra in match[1].split(","):
                if extra not in project["optional-dependencies"]:
                    raise Wrong(f"there is no extra {extra}")


def _check_sbatch(arguments: tuple[str, ...]) -> None:
    """The last argument is the script."""
    if not (ROOT / arguments[-1]).exists():
        raise Wrong(f"there is no {arguments[-1]}")


def _check_torchrun(arguments: tuple[str, ...]) -> None:
    """The command line is a program, not a Python file."""
    start = arguments.index("dali-aesthetic")
    if arguments[start - 1] != "--no-python":
        raise Wrong("torchrun starts programs with --no-python")
    parse_flags(arguments[start + 1 :])


def _check_shell(arguments: tuple[str, ...]) -> None:
    """Always right: the test runs it."""


CHECKS = {
    "dali-aesthetic": parse_flags,
    "python": _check_python,
    "docker": _check_docker,
    "make": _check_make,
    "pip": _check_pip,
    "sbatch": _check_sbatch,
    "torchrun": _check_torchrun,
    **dict.fromkeys(("ls", "mkdir", "split", "tar", "wait"), _check_shell),
}
