"""`report` of an output wherever it is."""

from __future__ import annotations

from pathlib import Path

from dali_aesthetic.report.page import REPORT, write_report
from dali_aesthetic.stores.access import Uploader, list_files
from dali_aesthetic.stores.location import is_url, join
from dali_aesthetic.stores.mirror import mirrored


def report_at(output: str, html: Path | None = None, by: str | None = None) -> str:
    """As `write_report`; gives back where the page is.

    At a URL it is made from a local copy of records and scores, and its pictures come from the sources alone.
    """
    if not is_url(output):
        return str(write_report(output, html=html, by=by))
    folders = ("stats", "scores")
    names = [f"{folder}/{name}" for folder in folders for name in list_files(join(output, folder))]
    with mirrored(output, ["run.json", *names]) as root:
        # The copy's own name is a temporary one, another each time.
        page = write_report(root, html=html, by=by, title=output.rstrip("/").rpartition("/")[2])
        if html is not None:
            return str(page)
        Uploader(output).put(REPORT, page)
        return join(output, REPORT)
