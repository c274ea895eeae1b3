"""Plots are drawn from results alone, with room for every name."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.plots import write_plots
from tests.benchmarks import made_up

ENCODERS = {"fused fp16": 3791.0, "fused bf16": 3949.0, "eager fp16": 2174.0, "open_clip eager fp16": 2104.0}


def heights(svg: Path, texts: tuple[str, ...]) -> list[float]:
    """How far down these texts are."""
    found = dict(re.findall(r'y="([\d.]+)"[^>]*>([^<]+)</text>', svg.read_text()))
    places = {text: float(height) for height, text in found.items()}
    return [next(place for text, place in places.items() if text.startswith(start)) for start in texts]


def test_end_to_end_is_drawn_with_its_steady_part_and_the_stages_apart(tmp_path: Path) -> None:
    rows = [made_up.row("end to end, 25% kept", 11.0), made_up.row("end to end, 25% kept, steady", 12.0)]
    results = [
        made_up.result(tmp_path, "end-to-end", [*rows, made_up.row("encoder only, same run", 13.0)]),
        made_up.result(tmp_path, "stages", [made_up.row("scan", 900.0), made_up.row("encoder", 13.0)]),
    ]
    end_to_end, stages = write_plots(results, tmp_path)
    assert "11; 12 steady" in end_to_end.read_text()
    assert "scan" not in end_to_end.read_text()
    assert stages.name == "stages_h100_2026-01-01.svg"
    assert "900" in stages.read_text()


@pytest.mark.parametrize("number", [1, 12, 40])
def test_bars_have_room_for_their_names(tmp_path: Path, number: int) -> None:
    rows = [made_up.row(f"stage {place}.", 1000.0) for place in range(number)]
    (plot,) = write_plots([made_up.result(tmp_path, "stages", rows)], tmp_path)
    found = heights(plot, tuple(f"stage {place}." for place in range(number)))
    assert all(below - above > 10 for above, below in pairwise(found))


def test_the_roofline_names_every_encoder_where_no_other_name_is(tmp_path: Path) -> None:
    rows = [made_up.row("GEMM fp16 square 8192", 633.0, "TFLOP/s")]
    rows += [made_up.row("copy within device memory", 2979.0, "GB/s")]
    encoders = [made_up.row(name, rate, precision="fp16") for name, rate in ENCODERS.items()]
    results = [
        made_up.result(tmp_path, "ceilings", rows),
        made_up.result(tmp_path, "encoders", [*encoders, made_up.row("head alone", 7e6)]),
    ]
    (plot,) = write_plots(results, tmp_path)
    found = sorted(heights(plot, (*(f"{name}: " for name in ENCODERS), "GEMM fp16: 633")))
    assert all(below - above > 8 for above, below in pairwise(found))
    assert "head alone" not in plot.read_text()
    assert "2026-01-01</text>" in plot.read_text()


def test_the_roofline_says_where_its_encoders_are_of_another_day(tmp_path: Path) -> None:
    rows = [made_up.row("GEMM fp16 square 8192", 633.0, "TFLOP/s")]
    encoders = [made_up.row("fused fp16", 3868.0, precision="fp16")]
    results = [
        made_up.result(tmp_path, "ceilings", rows),
        made_up.result(tmp_path, "encoders", encoders, date="2026-01-06"),
    ]
    (plot,) = write_plots(results, tmp_path)
    assert "2026-01-01; encoders: 2026-01-06</text>" in plot.read_text()
