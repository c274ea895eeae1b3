"""Everything that shows figures is made from result files, and what is committed is up to date."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import DOCUMENTS, RATES, README, fill, texts, write_report
from benchmarks.results import read_results
from benchmarks.tables import blocks
from tests.benchmarks import made_up

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "benchmarks" / "results"


def names(document: str) -> list[str]:
    """The names of a document's blocks."""
    return re.findall(r"<!-- bench:begin ([\w-]+) -->", document)


def test_what_is_committed_is_what_the_command_would_write() -> None:
    for path, text in texts(read_results(COMMITTED), COMMITTED, ROOT).items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: run `python -m benchmarks report`"


def test_the_readme_shows_one_table_of_speed() -> None:
    assert names((ROOT / README).read_text()) == ["speed"]


def test_the_page_of_benchmarks_shows_every_theme_and_its_plots() -> None:
    document = (ROOT / "docs" / "benchmarks.md").read_text()
    shown = {"throughput-plot", "stages", "ceilings", "ladder", "feed", "growth", "cold-start", "peers-full"}
    assert shown | {"kernels", "throughput", "encoders", "scaling", "host"} <= set(names(document))
    assert "](docs/benchmarks.md)" in (ROOT / README).read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_plot_and_page_that_a_document_shows_is_committed(document: Path) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)]*benchmarks/results/[^)]+)\)", path.read_text())
    assert links
    for link in links:
        assert (path.parent / link).resolve().exists(), link


def test_a_made_up_result_goes_through_to_every_page(tmp_path: Path) -> None:
    (tmp_path / "dali_aesthetic").mkdir()
    (tmp_path / README).write_text("a\n<!-- bench:begin throughput -->\nold 7\n<!-- bench:end -->\nz\n")
    folder = tmp_path / "results"
    made_up.whole(folder, end_to_end=2501.0)
    written = write_report(folder, tmp_path)
    document = (tmp_path / README).read_text()
    assert "| baseline 4:2:0 only, 512 px | fused fp16 | 2,501 |  | 2,600 | 96% |" in document
    assert "old 7" not in document
    assert document.startswith("a\n")
    assert document.endswith("z\n")
    rate = json.loads((tmp_path / RATES).read_text())["gpus"]["h100"]
    assert (rate["images_per_second"], rate["images"]) == (2000.0, "webmix")
    assert (rate["backend"], rate["cpu_cores"], rate["encoder_alone"]) == ("fused", 16, 2600.0)
    plot = folder / "throughput_h100_2026-01-01.svg"
    assert plot in written
    assert "2,501" in plot.read_text()
    before = {path: path.read_bytes() for path in written}
    assert write_report(folder, tmp_path) == written
    assert {path: path.read_bytes() for path in written} == before


def test_a_folder_without_results_empties_no_document(tmp_path: Path) -> None:
    (tmp_path / README).write_text("<!-- bench:begin throughput -->\nold 7\n<!-- bench:end -->\n")
    with pytest.raises(ValueError, match="no results in"):
        write_report(tmp_path / "mistyped", tmp_path)
    assert "old 7" in (tmp_path / README).read_text()


def test_a_newer_result_replaces_an_older_one_and_a_cpu_shows_no_gpu_figures(tmp_path: Path) -> None:
    rows = [made_up.row("end to end, 25% kept", 11.0), made_up.row("encoder only, same run", 12.0)]
    results = [
        *made_up.whole(tmp_path),
        made_up.result(tmp_path, "end-to-end", rows, date="2026-02-01"),
        made_up.result(tmp_path, "end-to-end", [made_up.row("end to end, 25% kept", 7.5)], slug="cpu"),
    ]
    text = blocks(results)["throughput"]
    assert "| baseline 4:2:0 only, 512 px |  | 11 |  | 12 | 92% |" in text
    assert "2,500" not in text
    assert "7.5" not in text


def test_the_table_of_speed_says_what_was_scored(tmp_path: Path) -> None:
    runs, peers, _ = made_up.whole(tmp_path)
    text = blocks([runs, peers])["speed"]
    ours, other, uniform = (line for line in text.splitlines() if "000 |" in line or "2,500 |" in line)
    assert ours.startswith("| dali_aesthetic | webmix | 4,000 | 1.0 |")
    assert other.startswith("| webdataset + DataLoader + open_clip | webmix | 1,000 | 4.0 |")
    assert uniform == "| dali_aesthetic, fused fp16 | baseline 4:2:0 only, 512 px | 2,500 |  |  |"
    assert "docs/benchmarks.md#images" in text


def test_a_comparison_on_uniform_images_says_so_below_the_rates_on_webmix(tmp_path: Path) -> None:
    runs, peers, _ = made_up.whole(tmp_path)
    uniform = made_up.without(peers, "", "images")
    lines = blocks([runs, uniform])["speed"].splitlines()
    assert lines[2] == "| dali_aesthetic, fused fp16 | webmix | 2,000 |  |  |"
    assert lines[3].startswith("| dali_aesthetic | baseline 4:2:0 only, 512 px | 4,000 | 1.0 |")
    alone = blocks([uniform])["speed"]
    assert "webmix" not in alone
    assert "on baseline 4:2:0 only, 512 px" in blocks([uniform])["peers-full"]


@pytest.mark.parametrize("rows", [[], [made_up.row("encoder only, same run", 12.0)]])
def test_a_result_cut_off_before_its_first_run_replaces_none(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    (tmp_path / "dali_aesthetic").mkdir()
    folder = tmp_path / "results"
    made_up.whole(folder)
    made_up.result(folder, "end-to-end", rows, date="2026-02-01")
    made_up.result(folder, "stages", [], date="2026-02-01")
    made_up.result(folder, "peers", [], date="2026-02-01")
    written = write_report(folder, tmp_path)
    assert json.loads((tmp_path / RATES).read_text())["gpus"]["h100"]["images_per_second"] == 2000.0
    speed = blocks(read_results(folder))["speed"]
    assert "| webdataset + DataLoader + open_clip | webmix | 1,000 | 4.0 |" in speed
    assert [path.name for path in written if path.suffix == ".svg"] == ["throughput_h100_2026-01-01.svg"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("<!-- bench:begin a -->\n", "without its"),
        ("<!-- bench:end -->", "without its"),
        ("<!-- bench:begin nobody -->\n<!-- bench:end -->", "no such block: nobody"),
    ],
)
def test_unpaired_markers_and_unknown_blocks_are_refused(document: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill(document, {"a": "text"})


def test_a_block_is_replaced_and_can_be_emptied() -> None:
    document = "<!-- bench:begin a -->\n<!-- bench:end -->"
    filled = fill(document, {"a": r"one \1"})
    assert filled == "<!-- bench:begin a -->\none \\1\n<!-- bench:end -->"
    assert fill(filled, {"a": ""}) == document
