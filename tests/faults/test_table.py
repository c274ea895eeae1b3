"""Every test that the table of faults names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.conftest import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "failures.md"


def named_tests(document: Path) -> list[tuple[str, str]]:
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text())


def test_every_test_that_the_table_names_is_there() -> None:
    named = named_tests(DOCUMENT)
    assert len(named) >= 16
    for path, name in named:
        tree = ast.parse((REPOSITORY / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (path, name)
