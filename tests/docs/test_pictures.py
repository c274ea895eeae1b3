"""The README's pictures show the run and the page as they are now."""

from __future__ import annotations

import html
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dali_aesthetic import Config
from dali_aesthetic.launch.run import run
from tests.docs.commands import ROOT

MAKE = "run: python docs/make_pictures.py"


@pytest.fixture(scope="module")
def maker() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "make_pictures.py"))


def first_words(lines: list[str]) -> list[str]:
    """The first word of each line, without lines that continue a row of the summary."""
    return [line.split()[0] for line in lines if line.strip() and not line.startswith(" " * 8)]


def test_the_picture_of_a_run_is_what_a_run_prints(maker: dict[str, Any], sandbox: Path) -> None:
    model = ("--encoder", "ViT-S-32-alt", "--weights", "random:0", "--head", "random:0", "--device", "cpu")
    words = ["data/{00000..00001}.tar" if word == maker["SHARDS"] else word for word in maker["RUN"]]
    printed = maker["in_terminal"]([sys.executable, "-m", "dali_aesthetic", *words, *model], sandbox)
    svg = maker["TERMINAL"].read_text()
    texts = re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>(.*?)</text>', svg, re.DOTALL)
    drawn: dict[str, str] = {}
    for line, text in texts:
        drawn[line] = drawn.get(line, "") + html.unescape(text).replace("\xa0", " ")
    lines = list(drawn.values())
    command = next(i for i, line in enumerate(lines) if line.startswith("$ "))
    assert first_words(lines[command + 1 :]) == first_words(printed.splitlines()), MAKE


def test_the_rows_in_the_readme_are_of_columns_that_a_run_writes(
    maker: dict[str, Any], sandbox: Path, tiny_weights: None
) -> None:
    shown = maker["ROWS"].search(maker["README"].read_text())
    assert shown, "the README has the place for the rows"
    header, *lines = shown[0].splitlines()
    assert tuple(header.split()) == maker["SHOWN"], MAKE
    assert [line.split()[1] for line in lines] == ["ok"] * 8 + ["truncated"]
    run(Config.build({"input": "photos", "output": "out", "columns": "caption"}))
    assert set(maker["SHOWN"]) <= set(pq.read_schema("out/scores/00000.parquet").names)


def test_the_pictures_of_the_report_were_made_of_this_page(maker: dict[str, Any]) -> None:
    assert maker["PAGE_SOURCES"].read_text().strip() == maker["page_sources"](), MAKE
    for scheme in maker["SCHEMES"]:
        assert (ROOT / "docs" / "pictures" / f"report-{scheme}.webp").read_bytes()[8:12] == b"WEBP"
