"""The command: where the page is goes to standard output, what is wrong is one message and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from tests.report.outputs import Item, make_output


def test_it_says_where_the_page_is(tmp_path: Path) -> None:
    output = make_output(tmp_path, {"0": [Item("a", 5.0, json={"lang": "en"})]})
    done = CliRunner().invoke(app, ["report", str(output), "--by", "lang"])
    assert done.exit_code == 0
    assert done.stdout.strip() == str(output / "report.html")
    assert "Keep rate by lang" in (output / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--by", "nothing"], "no such column"), (["--by", "key"], None)],
)
def test_a_column_must_be_there(tmp_path: Path, arguments: list[str], message: str | None) -> None:
    output = make_output(tmp_path, {"0": [Item("a", 5.0)]})
    done = CliRunner().invoke(app, ["report", str(output), *arguments])
    assert done.exit_code == (2 if message else 0)
    assert (message or "") in done.output
    assert (output / "report.html").exists() == (message is None)


def test_a_folder_that_is_no_output_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert "no committed shard" in done.output
