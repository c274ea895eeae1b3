"""Result files: their format, and that a part cut short leaves what it had."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.record import Measured, Record
from benchmarks.result import latest, newest, read_result, read_results
from benchmarks.timing import measure_rate, measure_speed
from tests.benchmarks import made_up

CPU = torch.device("cpu")


def test_a_row_has_median_spread_and_share_of_the_limit() -> None:
    measured = Measured(name="a", values=[3.0, 1.0, 2.0], limit=8.0, detail={"batch_size": 4})
    assert measured.as_row() == {
        "name": "a", "unit": "images/s", "median": 2.0, "min": 1.0, "max": 3.0, "repeats": 3, "limit": 8.0,
        "of_limit": 0.25, "batch_size": 4,
    }  # fmt: skip


def test_the_file_is_there_after_every_row_and_reads_back(tmp_path: Path) -> None:
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
def test_only_what_the_same_machine_measured_is_gone_on_with(
    tmp_path: Path, other: dict[str, Any], kept: list[str]
) -> None:
    record = Record("host", tmp_path, CPU, {})
    record.add(Measured(name="a", values=[1.0]))
    content = json.loads(record.path.read_text())
    record.path.write_text(json.dumps(content | {"machine": content["machine"] | other}))
    resumed = Record("host", tmp_path, CPU, {}, resume=True)
    assert [row["name"] for row in resumed.rows] == kept


def test_a_child_goes_on_with_its_parents_file_whatever_it_sees_of_the_machine(tmp_path: Path) -> None:
    """It may have fewer cores, or other packages on its path."""
    record = Record("host", tmp_path, CPU, {})
    record.add(Measured(name="a", values=[1.0]))
    content = json.loads(record.path.read_text())
    record.path.write_text(json.dumps(content | {"machine": content["machine"] | {"cpu_cores": 999}}))
    child = Record("host", tmp_path, CPU, {}, resume=True, date=record.date)
    assert [row["name"] for row in child.rows] == ["a"]


def test_a_file_says_what_it_was_measured_on_and_no_folders(
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
    assert latest(tmp_path, "host", "h100") == tmp_path / "host_h100_2026-03-01.json"
    assert latest(tmp_path, "host", "a100") is None


def test_a_rate_counts_what_the_work_says_and_not_the_warm_up() -> None:
    calls = []

    def work() -> int:
        calls.append(sum(range(20_000)))
        return 1000

    row = measure_rate("a", work, 3, CPU, detail=lambda: {"calls": len(calls)}).as_row()
    assert row["calls"] == 4
    assert row["repeats"] == 3
    assert 0 < row["min"] <= row["median"] <= row["max"]
    assert row["cores_per_1000_images_s"] == pytest.approx(row["cpu_us_per_image"] / 1000, abs=1e-4)


def test_a_speed_is_the_rate_in_its_unit() -> None:
    one = measure_speed("a", lambda: 10, 1, CPU, unit="GB/s", per_item=0.0)
    assert (one.unit, list(one.values)) == ("GB/s", [0.0])
