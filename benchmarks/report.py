"""Everything that shows figures, made from committed results: pages, plots, blocks, the package's rates.

A block of a document goes from `<!-- bench:begin NAME -->` to `<!-- bench:end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import UNIFORM, WEBMIX, encoder_row, end_to_end
from benchmarks.plots import write_plots
from benchmarks.results import Result, Row, read_results
from benchmarks.tables import blocks, page

README = Path("README.md")
DOCUMENTS = (
    README,
    *(Path("docs", name) for name in ("benchmarks.md", "precision.md", "stores.md", "failures.md")),
)
"""The documents with blocks; those that don't exist are left out."""
RATES = Path("dali_aesthetic/rates.json")
"""The rates that `dali-aesthetic plan` calculates with."""
RATE_ROWS = {
    "end to end, webmix, steady": WEBMIX,
    "end to end, webmix": WEBMIX,
    "end to end, 25% kept, steady": UNIFORM,
    "end to end, 25% kept": UNIFORM,
}
"""The rows a rate is taken from, the first that exists, and their images: a long run is steady."""
_BLOCK = re.compile(r"(<!-- bench:begin (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- bench:end -->)", re.DOTALL)
_BEGIN, _END = "<!-- bench:begin ", "<!-- bench:end -->"


def texts(results: Sequence[Result], folder: Path, root: Path = Path()) -> dict[Path, str]:
    """All text files that are made from results, with their content."""
    pages = {folder / result.file.replace(".json", ".md"): page(result) for result in results}
    texts_of = blocks(results)
    there = [root / name for name in DOCUMENTS if (root / name).exists()]
    documents = {path: fill(path.read_text(), texts_of) for path in there}
    return {**pages, **documents, root / RATES: rates_json(results)}


def write_report(folder: Path, root: Path = Path()) -> list[Path]:
    """Write everything; returns the paths. Raises ValueError for wrong results or markers, or no results."""
    results = read_results(folder)
    if not results:
        raise ValueError(f"no results in {folder}: every table and rate would be emptied")
    written = texts(results, folder, root)
    for path, text in written.items():
        path.write_text(text)
    return [*written, *write_plots(results, folder)]


def fill(document: str, blocks: Mapping[str, str]) -> str:
    """The document with its blocks replaced. Raises ValueError for unknown blocks and unpaired markers."""
    found = list(_BLOCK.finditer(document))
    if not len(found) == document.count(_BEGIN) == document.count(_END):
        raise ValueError("a bench:begin without its bench:end, or the other way round")
    unknown = {match["name"] for match in found} - blocks.keys()
    if unknown:
        raise ValueError(
            f"no such block: {', '.join(sorted(unknown))}; there are {', '.join(sorted(blocks))}"
        )
    return _BLOCK.sub(lambda match: match[1] + _body(blocks[match["name"]]) + match[4], document)


def _body(text: str) -> str:
    return f"{text.strip()}\n" if text.strip() else ""


def rates_json(results: Sequence[Result]) -> str:
    """Images/s of one GPU end to end by kind of GPU, with their sources."""
    found = {slug: _rate(result) for slug, result in end_to_end(results).items() if slug != "cpu"}
    gpus = {slug: rate for slug, rate in found.items() if rate}
    return json.dumps({"gpus": gpus}, indent=1) + "\n"


def _rate(result: Result) -> dict[str, Any] | None:
    row = next((row for name in RATE_ROWS if (row := result.row(name))), None)
    return None if row is None else _described(result, row)


def _described(result: Result, row: Row) -> dict[str, Any]:
    encoder = encoder_row(result) or row
    detail = encoder.detail
    return {
        "images_per_second": row.median,
        "images": RATE_ROWS[row.name],
        "encoder_alone": encoder.median,
        "encoder": result.content["settings"]["encoder"],
        "backend": detail.get("backend"),
        "precision": detail.get("precision"),
        "hardware": result.machine["hardware"],
        "cpu_cores": result.machine["cpu_cores"],
        "date": result.date,
        "source": f"benchmarks/results/{result.file}",
    }
