"""The shards that are measured on: their kinds and counts, made once."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import datasets
from benchmarks.datasets import KINDS, DatasetSpec, cut_dataset, make_dataset
from dali_aesthetic.decode.headers import Limits, probe
from tests.conftest import read_members


def image_members(path: Path) -> list[tuple[str, bytes]]:
    return [(name, data) for name, data in read_members(path) if not name.endswith((".txt", ".json"))]


@pytest.mark.parametrize(
    ("kind", "formats"),
    [("baseline", {"JPEG": 8}), ("progressive", {"JPEG": 8}), ("mixed", {"JPEG": 4, "PNG": 2, "WEBP": 2})],
)
def test_a_kind_has_the_formats_of_its_name(tmp_path: Path, kind: str, formats: dict[str, int]) -> None:
    spec = DatasetSpec(short_side=64, distinct=8, num_shards=1, kind=kind)
    make_dataset(tmp_path, spec, 1)
    images = [Image.open(io.BytesIO(data)) for _, data in image_members(tmp_path / "bench-00000.tar")]
    found: dict[str, int] = {}
    for image in images:
        assert min(image.size) == 64
        found[str(image.format)] = found.get(str(image.format), 0) + 1
        assert bool(image.info.get("progressive")) == (kind == "progressive")
    assert found == formats


def test_one_in_twenty_of_bad_images_is_damaged(tmp_path: Path) -> None:
    good, bad = (
        DatasetSpec(short_side=32, distinct=41, num_shards=1, kind=kind) for kind in ("baseline", "bad")
    )
    make_dataset(tmp_path / "good", good, 1)
    make_dataset(tmp_path / "bad", bad, 1)
    pairs = zip(
        image_members(tmp_path / "good" / "bench-00000.tar"),
        image_members(tmp_path / "bad" / "bench-00000.tar"),
        strict=True,
    )
    assert [number for number, (one, other) in enumerate(pairs) if one != other] == [0, 20, 40]


def test_shards_are_made_once_and_linked(tmp_path: Path) -> None:
    spec = DatasetSpec(short_side=32, distinct=2, num_shards=3)
    pattern = make_dataset(tmp_path, spec, 1)
    assert pattern.endswith("bench-*.tar")
    first = tmp_path / "bench-00000.tar"
    assert [path.resolve() for path in sorted(tmp_path.glob("bench-*.tar"))] == [first.resolve()] * 3
    before = first.stat().st_mtime_ns
    make_dataset(tmp_path, spec, 1)
    assert first.stat().st_mtime_ns == before
    make_dataset(tmp_path, DatasetSpec(short_side=48, distinct=2, num_shards=3), 1)
    assert first.stat().st_mtime_ns != before
    assert spec.num_images == 6


def test_fewer_shards_are_as_many_as_asked_for(tmp_path: Path) -> None:
    for count in (5, 2):
        make_dataset(tmp_path, DatasetSpec(short_side=32, distinct=2, num_shards=count), 1)
        assert len(list(tmp_path.glob("bench-*.tar"))) == count


def test_shards_that_were_cut_off_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = DatasetSpec(short_side=32, distinct=3, num_shards=1)
    make_dataset(tmp_path, spec, 1)
    whole = read_members(tmp_path / "bench-00000.tar")
    monkeypatch.setattr(datasets, "_saved", lambda *image, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_dataset(tmp_path, DatasetSpec(short_side=48, distinct=3, num_shards=1), 1)
    monkeypatch.undo()
    make_dataset(tmp_path, spec, 1)
    assert read_members(tmp_path / "bench-00000.tar") == whole


def test_small_shards_hold_the_first_samples_of_a_large_one(tmp_path: Path) -> None:
    make_dataset(tmp_path / "large", DatasetSpec(short_side=32, distinct=5, num_shards=1), 1)
    source = tmp_path / "large" / "bench-00000.tar"
    pattern = cut_dataset(tmp_path / "small", source, 4, 2)
    small = sorted((tmp_path / "small").glob(Path(pattern).name))
    assert len(small) == 4
    assert read_members(small[3]) == read_members(source)[:6]
    with tarfile.open(small[0]) as tar:
        assert len(tar.getnames()) == 6


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=KINDS[0]):
        DatasetSpec(kind="raw")


def test_a_webmix_has_its_shares_in_random_order_and_other_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "_WEB_SIDES", (20, 60))
    spec = datasets.DatasetSpec(kind="webmix", short_side=0, distinct=200, num_shards=1)
    assert spec.name == "webmix"
    pattern = datasets.make_dataset(tmp_path, spec, 1)
    images = [data for _, data in image_members(Path(pattern.replace("*", "00000")))]
    kinds: list[str] = []
    for image in images:
        with Image.open(io.BytesIO(image)) as opened:
            kind = str(opened.format)
            kinds.append("progressive" if opened.info.get("progressive") else kind)
    assert Counter(kinds) == {"JPEG": 152, "progressive": 20, "PNG": 16, "WEBP": 10, "GIF": 1, "AVIF": 1}
    layouts = Counter(probe(image, Limits()).layout for image in images)
    assert layouts[b"\x22\x11\x11"] == 118
    assert (layouts[b"\x11\x11\x11"], layouts[b"\x21\x11\x11"]) == (24, 6)
    assert (layouts[b"\x11"], layouts[b"\x22"]) == (2, 2)
    changes = sum(one != other for one, other in pairwise(kinds))
    assert changes > 40, "in runs of a kind the mixture would not be one"
    sides = [min(Image.open(io.BytesIO(image)).size) for image in images]
    assert min(sides) < 25
    assert max(sides) > 50
