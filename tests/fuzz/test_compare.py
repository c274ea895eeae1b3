"""A few seconds of the comparison with tarfile and Pillow. For an hour of it see `tests.fuzz.compare`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dali_aesthetic.shards import scan
from tests.fuzz import against_pillow, against_tarfile, compare
from tests.fuzz.compare import Finding, run

TAR_CASES, IMAGE_CASES = 1500, 12


def test_the_tar_scan_and_tarfile_agree(tmp_path: Path) -> None:
    summary = run(against_tarfile.case, 0, cases=TAR_CASES, save=tmp_path)
    assert summary.cases == TAR_CASES
    assert summary.wrong == {}
    assert min(summary.seen["agree"], summary.seen["both refuse"]) > 300


def test_the_header_check_with_the_decoders_and_pillow_agree(tmp_path: Path) -> None:
    summary = run(against_pillow.images_case(), 0, cases=IMAGE_CASES, save=tmp_path)
    assert summary.wrong == {}
    for format in ("jpeg", "png", "webp"):
        assert min(summary.seen[f"{format}: both read"], summary.seen[f"{format}: both refuse"]) > 3, format


def test_a_scan_that_is_off_by_a_byte_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def off(data: bytes) -> Iterator[scan.Member]:
        return (member._replace(size=member.size + 1) for member in scan.scan_tar(data))

    monkeypatch.setattr(against_tarfile, "scan_tar", off)
    summary = run(against_tarfile.case, 0, cases=50, save=tmp_path)
    assert summary.wrong["size differs"] > 10
    assert len(list((tmp_path / "size_differs").iterdir())) == 3


def test_an_image_that_only_the_product_reads_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        against_pillow, "_reference", lambda image: against_pillow.Reference(None, error="no")
    )
    wrong = run(against_pillow.images_case(), 0, cases=1).wrong
    assert any(kind.startswith("accepted jpeg") for kind in wrong)


def test_growing_memory_is_a_finding_and_a_seed_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(rng: random.Random) -> list[Finding]:
        return [Finding(f"{rng.randbytes(1)[0]}", wrong=False)]

    first = run(seen, 5, cases=4).seen
    assert run(seen, 5, cases=4).seen == first
    peaks = iter([100.0, 100.0] + [100.0, 170.0, 170.0, 170.0, 170.0] + [170.0] * 20)
    monkeypatch.setattr(compare, "_peak_mib", lambda: next(peaks))
    assert run(seen, 5, cases=4, max_growth_mib=60).wrong == {"memory: the peak grew": 1}
