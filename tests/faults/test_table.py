"""Every test that the fault tables name exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

README, DOCUMENT = REPOSITORY / "README.md", REPOSITORY / "docs" / "bad-inputs.md"


def named_tests(document: Path) -> list[tuple[str, str]]:
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text())


@pytest.mark.parametrize(("document", "fewest"), [(README, 10), (DOCUMENT, 16)], ids=["README", "bad-inputs"])
def test_every_test_that_the_table_names_is_there(document: Path, fewest: int) -> None:
    named = named_tests(document)
    assert len(named) >= fewest
    for path, name in named:
        tree = ast.parse((REPOSITORY / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (path, name)


def test_the_short_table_is_part_of_the_long_one() -> None:
    assert set(named_tests(README)) <= set(named_tests(DOCUMENT))
