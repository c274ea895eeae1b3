"""The page of an output at a URL."""

from __future__ import annotations

from pathlib import Path

from dali_aesthetic.report.page import report_at
from tests.report.outputs import Item, make_output
from tests.stores.fixtures import bucket, s3_server
from tests.stores.s3 import Bucket

__all__ = ["bucket", "s3_server"]


def test_it_has_the_name_of_its_folder_in_the_bucket(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put_folder(make_output(tmp_path, {"0": [Item("a", 5.0)]}), "runs/kept")
    assert report_at(f"{bucket.url}/runs/kept/") == f"{bucket.url}/runs/kept/report.html"
    page = bucket.snapshot("runs/kept")["report.html"].decode()
    assert "<title>kept · aesthetic scores</title>" in page
    assert report_at(f"{bucket.url}/runs/kept") == f"{bucket.url}/runs/kept/report.html"
    assert bucket.snapshot("runs/kept")["report.html"].decode() == page, "the same scores give the same page"
