"""From committed results to everything that shows figures: pages, plots, the README, the package's rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.plots import write_plots
from benchmarks.rates import rates_json
from benchmarks.readme import fill
from benchmarks.result import Result, read_results
from benchmarks.tables import blocks, page

README = Path("README.md")
RATES = Path("dali_aesthetic/rates.json")


def texts(results: Sequence[Result], folder: Path, root: Path = Path()) -> dict[Path, str]:
    """Every file of text that follows from the results, and what it should hold."""
    pages = {folder / result.file.replace(".json", ".md"): page(result) for result in results}
    readme = fill((root / README).read_text(), blocks(results))
    return {**pages, root / README: readme, root / RATES: rates_json(results)}


def write_report(folder: Path, root: Path = Path()) -> list[Path]:
    """Write all of it; the files written. Raises ValueError for results or markers that are wrong."""
    results = read_results(folder)
    written = texts(results, folder, root)
    for path, text in written.items():
        path.write_text(text)
    return [*written, *write_plots(results, folder)]
