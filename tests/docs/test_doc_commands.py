"""Every command and every Python block of the documents works as written."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from tests.docs.commands import ROOT, Command, Wrong, blocks, check, commands, commands_of

DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("skills/*/SKILL.md"))]
IDS = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
LANGUAGES = {"", "sh", "python", "yaml", "json"}
"""A block in another language would never be run."""
EXIT_CODES = {"doctor": (0, 1)}
"""`doctor` reports that this machine has no weights."""

KEPT = Command(("dali-aesthetic", "run", "--input", "data", "--output", "kept"), 0)
"""The run that a document assumes when it reads `kept` without having made it."""

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)


@every_document
def test_no_command_has_an_unknown_flag(document: Path) -> None:
    assert {block.language for block in blocks(document)} <= LANGUAGES
    for command in commands(document):
        try:
            check(command)
        except Wrong as error:
            pytest.fail(f"{document.name}, line {command.line}: {' '.join(command.words)}: {error}")


@every_document
def test_commands_and_python_blocks_run(document: Path, sandbox: Path, tiny_weights: None) -> None:
    """All blocks run in order in one folder, so a block may read the output of an earlier one."""
    for block in blocks(document):
        if block.language == "python":
            names = {"pil_image": Image.open("a.jpg"), "__name__": document.stem}
            exec(compile(block.text, f"{document}:{block.line}", "exec"), names)
        for command in commands_of(block):
            if not command.why_not_run():
                if command.reads("kept") and not Path("kept").exists():
                    assert _run(KEPT) == 0
                words = " ".join(command.words)
                allowed = next((codes for name, codes in EXIT_CODES.items() if name in words), (0,))
                assert _run(command) in allowed, f"{document.name}, line {command.line}: {words}"


def _run(command: Command) -> int:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in command.variables.items():
            patch.setenv(name, value)
        words = [_shortened(_expanded(word)) for word in command.words]
        _clear_output(words)
        if words[0] == "dali-aesthetic":
            done = CliRunner().invoke(app, words[1:])
            print(done.output)
            Path(command.redirect).write_text(done.stdout)
            return done.exit_code
        if words[0] == "python":
            patch.setattr(sys, "argv", words[1:])
            return _run_script(words[1])
    return subprocess.run(["bash", "-c", f"{' '.join(words)} > {command.redirect}"], check=False).returncode


def _expanded(word: str) -> str:
    """Expands variables. The job number is only substituted: if it were set, the command would be a job."""
    return os.path.expandvars(word.replace("$SLURM_ARRAY_TASK_ID", "0"))


def _shortened(word: str) -> str:
    """Shortens a range of shards to its first two."""
    return re.sub(r"\{(\d+)\.\.\d+\}", lambda m: f"{{{m[1]}..{int(m[1]) + 1:05d}}}", word)


def _clear_output(words: list[str]) -> None:
    """Removes the output: documents show alternatives that write to the same folder."""
    for flag, value in pairwise(words):
        if flag == "--output":
            shutil.rmtree(value, ignore_errors=True)


def _run_script(file: str) -> int:
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dali-aesthetic run --input a --outptu b", "No such option"),
        ("dali-aesthetic rum --input a", "unknown command"),
        ("dali-aesthetic --versoin", "unknown flag"),
        ("docker run --gpus all dali-aesthetic --input /input --treshold 0.5", "No such option"),
        ("docker run --gpus all another --input /input", "another image"),
        ("docker build --build-arg CUDDA=12 .", "no ARG CUDDA"),
        ("make rnu", "no rnu"),
        ("pip install dali-aesthetic[cuda11]", "no extra cuda11"),
        ("python examples/none.py", "no examples/none.py"),
        ("python -m benchmarks stagse", "unknown command 'stagse'"),
        ("python -m benchmarks stages --quik", "No such option"),
        ("curl x", "unknown program"),
    ],
)
def test_an_invalid_command_is_reported(words: str, message: str) -> None:
    with pytest.raises(Wrong, match=message):
        check(Command(tuple(words.split()), 1))
