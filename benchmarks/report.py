"""From committed results to everything that shows figures: pages, plots, documents, the package's rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.plots import write_plots
from benchmarks.rates import rates_json
from benchmarks.readme import fill
from benchmarks.result import Result, read_results
from benchmarks.tables import blocks, page

README = Path("README.md")
DOCUMENTS = (README, Path("docs/benchmarks.md"), Path("docs/stores.md"))
"""What has blocks that are filled in; one that isn't there has none."""
RATES = Path("dali_aesthetic/rates.json")


def texts(results: Sequence[Result], folder: Path, root: Path = Path()) -> dict[Path, str]:
    """Every file of text that follows from the results, and what it should hold."""
    pages = {folder / result.file.replace(".json", ".md"): page(result) for result in results}
    texts_of = blocks(results)
    there = [root / name for name in DOCUMENTS if (root / name).exists()]
    documents = {path: fill(path.read_text(), texts_of) for path in there}
    return {**pages, **documents, root / RATES: rates_json(results)}


def write_report(folder: Path, root: Path = Path()) -> list[Path]:
    """Write all of it; the files written. Raises ValueError for wrong results or markers, or no results."""
    results = read_results(folder)
    if not results:
        raise ValueError(f"no results in {folder}: every table and rate would be emptied")
    written = texts(results, folder, root)
    for path, text in written.items():
        path.write_text(text)
    return [*written, *write_plots(results, folder)]
