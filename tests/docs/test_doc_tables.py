"""The columns, statuses, presets and fields that the documents list match the code; links resolve."""

from __future__ import annotations

import re
import runpy
from dataclasses import fields
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperGroup

import dali_aesthetic
from dali_aesthetic.cli import app
from dali_aesthetic.launch.run import run
from dali_aesthetic.threshold import PRESETS
from dali_aesthetic.types import ShardReport, Status
from tests.docs.commands import ROOT

SKILL = ROOT / "skills" / "img-aesthetic" / "SKILL.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")), SKILL]


def tables(document: Path, heading: str) -> list[list[str]]:
    """The cells of all table rows under `heading`, without the header row."""
    section = re.split(r"^## ", document.read_text(), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(f"{heading}\n")]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]


def named(document: Path, heading: str) -> list[str]:
    """The names in backticks in the first column."""
    return [name for row in tables(document, heading) for name in re.findall(r"`([^`]+)`", row[0])]


def test_documented_columns_match_a_run(sandbox: Path, tiny_weights: None) -> None:
    import pyarrow.parquet as pq

    run(dali_aesthetic.Config.build({"input": "photos", "output": "out", "profile": True}))
    schema = pq.read_table("out/scores").schema
    listed = {name: row[1] for row in tables(FORMAT, "scores/") for name in re.findall(r"`([^`]+)`", row[0])}
    assert listed == {field.name: str(field.type).replace("float", "float32") for field in schema}


FORMAT = ROOT / "docs" / "output-format.md"


def test_every_status_is_documented() -> None:
    assert named(FORMAT, "status") == [status.value for status in Status]


def test_every_field_of_stats_and_run_json_is_documented(sandbox: Path, tiny_weights: None) -> None:
    import json

    run(dali_aesthetic.Config.build({"input": "photos", "output": "out"}))
    stats, record = (json.loads(Path("out", name).read_bytes()) for name in ("stats/00000.json", "run.json"))
    assert sorted(named(FORMAT, "stats/")) == sorted(stats) == sorted(f.name for f in fields(ShardReport))
    assert sorted(named(FORMAT, "run.json")) == sorted(record)


@pytest.mark.parametrize(
    "document", [ROOT / "docs" / "threshold.md", SKILL], ids=["threshold.md", "SKILL.md"]
)
def test_documented_presets_match_the_code(document: Path) -> None:
    listed = {}
    for row in re.findall(r"^\|.*\| 0\.\d+ \|.*$", document.read_text(), re.MULTILINE):
        unit, share = re.search(r"\| (0\.\d+) \|", row), re.search(r"([\d.]+)%", row)
        assert unit is not None
        for name in re.findall(r"`(\S+)`", row):
            listed[name] = (float(unit[1]), float(share[1]) if share else None)
    assert listed == {
        name: (preset.raw / 10, None if preset.laion_share is None else round(preset.laion_share * 100, 4))
        for name, preset in PRESETS.items()
    }


def test_every_command_is_in_the_quick_start() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert sorted(named(ROOT / "docs" / "quick-start.md", "Commands")) == sorted(group.commands)


@pytest.mark.parametrize(
    "name", ["docs/library.md", "docs/commands.md", "docs/configuration.md", "configs/default.yaml"]
)
def test_a_generated_page_matches_the_code(name: str) -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))["pages"]()
    assert made[ROOT / name] == (ROOT / name).read_text(), "run: python docs/make_reference.py"


def test_the_python_reference_shows_types_as_they_are_written() -> None:
    assert "ForwardRef" not in (ROOT / "docs" / "library.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=[document.name for document in DOCUMENTS])
def test_links_resolve(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text()):
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_files_named_in_documents_exist() -> None:
    text = (ROOT / "docs" / "precision.md").read_text()
    files = re.findall(r"`((?:tests|docs|examples)/[\w/.]*)`", text)
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_front_matter_of_the_skill_is_valid() -> None:
    _, front, body = SKILL.read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["name"] == SKILL.parent.name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", matter["name"])
    assert 0 < len(matter["description"]) <= 1024
    assert 0 < len(matter["compatibility"]) <= 500
    assert matter["license"] == "Apache-2.0"
    assert matter["metadata"] == {"package": "dali-aesthetic", "version": dali_aesthetic.__version__}
    assert len(body.splitlines()) < 500


def test_the_script_of_the_skill_is_the_example() -> None:
    assert f"```python\n{(ROOT / 'examples' / 'aesthetic_pipeline.py').read_text()}```" in SKILL.read_text()
