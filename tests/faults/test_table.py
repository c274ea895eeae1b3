"""The table of faults names tests that exist."""

from __future__ import annotations

import ast
import re

from tests.conftest import REPOSITORY


def test_every_test_that_the_table_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (REPOSITORY / "docs" / "bad-inputs.md").read_text())
    assert len(named) > 15
    for path, name in named:
        tree = ast.parse((REPOSITORY / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (path, name)
