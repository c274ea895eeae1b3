"""Result files: their format, what a resumed one keeps, and which of several is the newest."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.results import Measured, Record, newest, read_result, read_results
from tests.benchmarks import made_up
from tests.conftest import REPOSITORY

CPU = torch.device("cpu")
COMMITTED = REPOSITORY / "benchmarks" / "results"


def test_a_row_has_median_spread_and_share_of_the_limit() -> None:
    measured = Measured(name="a", values=[3.0, 1.0, 2.0], limit=8.0, detail={"batch_size": 4})
    assert measured.as_row() == {
        "name": "a", "unit": "images/s", "median": 2.0, "min": 1.0, "max": 3.0, "repeats": 3, "limit": 8.0,
        "of_limit": 0.25, "batch_size": 4,
    }  # fmt: skip


def test_the_file_is_written_after_every_row_and_reads_back(tmp_path: Path) -> None:
    record = Record("host", tmp_path, CPU, {"encoder": "ViT-B-32"})
    record.add(Measured(name="a", values=[1.0]))
    assert json.loads(record.path.read_text())["rows"][0]["name"] == "a"
    record.skip("b", "no such thing here")
    record.add(Measured(name="a", values=[2.0], detail={"cpu_us_per_image": 4.0}))
    found = read_result(record.path)
    assert [(row.name, row.median, row.cpu_us) for row in found.rows] == [("a", 2.0, 4.0)]
    assert found.skipped == [{"name": "b", "reason": "no such thing here"}]
    assert (found.theme, found.slug, found.date) == ("host", "cpu", found.content["date"])


@pytest.mark.parametrize(
    ("other", "kept"),
    [({"load_average_before": 99.0}, ["a"]), ({"cpu_cores": 999}, []), ({"packages": {"torch": "1.0"}}, [])],
)
def test_a_resumed_file_keeps_rows_of_the_same_machine_only(
    tmp_path: Path, other: dict[str, Any], kept: list[str]
) -> None:
    record = Record("host", tmp_path, CPU, {})
    record.add(Measured(name="a", values=[1.0]))
    content = json.loads(record.path.read_text())
    record.path.write_text(json.dumps(content | {"machine": content["machine"] | other}))
    resumed = Record("host", tmp_path, CPU, {}, resume=True)
    assert [row["name"] for row in resumed.rows] == kept


def test_a_child_resumes_its_parents_file_whatever_machine_it_sees(tmp_path: Path) -> None:
    """It may have fewer cores, or other packages on its path."""
    record = Record("host", tmp_path, CPU, {})
    record.add(Measured(name="a", values=[1.0]))
    content = json.loads(record.path.read_text())
    record.path.write_text(json.dumps(content | {"machine": content["machine"] | {"cpu_cores": 999}}))
    child = Record("host", tmp_path, CPU, {}, resume=True, date=record.date)
    assert [row["name"] for row in child.rows] == ["a"]


def test_a_file_names_the_machine_and_the_command_without_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "host", "--results", str(tmp_path), "--quick", "--data", "/some"])
    record = Record("host", tmp_path, CPU, {})
    record.note("complete", True)
    content = json.loads(record.path.read_text())
    assert content["command"] == "python -m benchmarks host --quick"
    assert {"hardware", "cpu", "cpu_cores", "packages", "load_average_before"} <= content["machine"].keys()
    assert torch.__version__.startswith(content["machine"]["packages"]["torch"])
    assert str(tmp_path) not in record.path.read_text()


def test_the_newest_of_a_theme_is_by_date_and_hardware(tmp_path: Path) -> None:
    for slug, date in (("h100", "2026-01-01"), ("h100", "2026-03-01"), ("cpu", "2026-02-01")):
        made_up.result(tmp_path, "host", [made_up.row("a", 1.0)], slug, date)
    by_slug = newest(read_results(tmp_path), "host")
    assert {slug: result.date for slug, result in by_slug.items()} == {
        "h100": "2026-03-01",
        "cpu": "2026-02-01",
    }
    assert list(by_slug) == ["h100", "cpu"]


def test_the_ladder_is_read_as_rows() -> None:
    path = max(COMMITTED.glob("encoder_h100_*.json"))
    ladder = read_result(path)
    content = json.loads(path.read_text())
    assert [row.median for row in ladder.rows] == [row["images_per_second"] for row in content["ladder"]]
    assert ladder.machine["hardware"] == "H100 80GB HBM3"


@pytest.mark.parametrize("text", ["[1]", '{"theme": "host", "ro', "\xff"])
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "host_cpu_2026-01-01.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"host_cpu_2026-01-01.json is no result of these benchmarks"):
        read_results(tmp_path)
