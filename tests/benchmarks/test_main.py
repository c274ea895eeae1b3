"""All parts together: what a resumed run leaves out, and options that no part has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import __main__ as main
from benchmarks.settings import Settings


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that were begun, each of which ends at once."""
    parts: list[str] = []

    def run(command: list[str], seconds: float) -> int:
        parts.append(command[3])
        return 0

    monkeypatch.setattr(main, "run_bounded", run)
    return parts


def complete(settings: Settings, *themes: str) -> None:
    for theme in themes:
        settings.record(theme).note("complete", True)


def test_a_resumed_run_leaves_out_what_is_complete(tmp_path: Path, begun: list[str]) -> None:
    settings = Settings(device="cpu", quick=True, results=tmp_path)
    complete(settings, "host", "encoder")
    complete(replace(settings, seconds=9.0), "stages")
    command = ["all", "--resume", "--device", "cpu", "--results", str(tmp_path)]
    shown = CliRunner().invoke(main.app, [*command, "--quick"])
    assert shown.exit_code == 0
    assert set(main.IN_ALL) - set(begun) == {"host", "ladder"}
    begun.clear()
    CliRunner().invoke(main.app, command)
    assert begun == list(main.IN_ALL), "a quick result is none of a whole run"
    begun.clear()
    CliRunner().invoke(main.app, [*command, "--quick", "--seconds", "9"])
    assert set(main.IN_ALL) - set(begun) == {"stages"}


@pytest.mark.parametrize("command", ["all", "check"])
def test_a_wrong_option_is_refused_before_any_part_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: list[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for wrong in (("--sekonds", "9"), ("--repeats", "-1")):
        shown = CliRunner().invoke(main.app, [command, "--device", "cpu", *wrong])
        assert shown.exit_code == 2
        assert begun == []
