"""What reading costs, on a few megabytes over loopback, and the document that is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import stores
from benchmarks.report import fill, texts
from benchmarks.results import Result, read_result
from benchmarks.settings import Settings
from benchmarks.tables import blocks

ROOT = Path(__file__).parents[2]


def _absent(endpoint: str) -> stores.Read:
    raise ImportError("No module named 'absent'")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("stores")
    settings = Settings(
        device="cpu", quick=True, distinct=8, num_shards=2, repeats=1,
        data=folder / "data", results=folder / "results",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"):
            patch.setenv(name, "")
        patch.setattr(stores, "CLIENTS", {"obstore": stores.obstore_client, "absent": _absent})
        record = settings.record("stores")
        stores.measure_stores(record, settings)
    return read_result(record.path)


def test_every_way_to_read_has_its_cost(result: Result) -> None:
    names = [row.name for row in result.rows]
    assert names[0] == "obstore, in parts of 8 MiB"
    assert sum("the package" in name for name in names) == 3
    assert names[-2:] == ["host loop, 25% kept, local disk", "host loop, 25% kept, s3://"]
    for row in result.rows:
        assert 0 < row.median < 1e6
        per_sample_us = row.median * (100 if row.unit == stores.PER_GB else 1)
        assert row.detail["cores_at_target"] == pytest.approx(6600e-6 * per_sample_us, abs=0.01)
    assert result.rows[0].detail["of_first"] == 1.0
    assert result.skipped == [{"name": "absent", "reason": "not installed (No module named 'absent')"}]


def test_the_document_shows_them(result: Result) -> None:
    empty = "<!-- bench:begin {} -->\n<!-- bench:end -->\n"
    filled = fill(empty.format("stores") + empty.format("stores-loop"), blocks([result]))
    assert "| obstore, in parts of 8 MiB | " in filled
    assert "| host loop, 25% kept, s3:// | " in filled
    assert f"../benchmarks/results/{result.file.replace('.json', '.md')}" in filled
    assert "absent: not installed" in filled


def test_the_document_is_made_with_the_readme(result: Result) -> None:
    written = texts([result], ROOT / "benchmarks" / "results", ROOT)
    assert "the package: a tar at s3://" in written[ROOT / "docs" / "stores.md"]
