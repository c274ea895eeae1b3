"""The survey of an input: keys, members, formats, sizes, damage."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from dali_aesthetic.inspect_input import survey
from tests.conftest import add_member, jpeg, write_shard


def test_keys_members_formats_and_sizes(shards_dir: Path) -> None:
    found = survey([str(shards_dir)], max_shards=10)
    assert found.samples_per_shard == {"00000": 7, "00001": 10, "00002": 7}
    assert found.formats["jpeg"] == 23
    assert found.statuses == {"ok": 22, "truncated": 1, "empty": 1}
    assert found.extensions == {"jpg": 24, "txt": 24, "json": 24}
    first = found.first[0]
    assert (first["key"], first["size"]) == ("0000", "512x512")
    assert [member["name"] for member in first["members"]] == ["0000.jpg", "0000.txt", "0000.json"]
    assert found.short_side["min"] < found.short_side["max"]
    assert not found.damage


def test_some_of_many_shards_are_read_and_the_total_is_estimated(tmp_path: Path) -> None:
    image = jpeg(Image.new("RGB", (64, 48)))
    for i in range(20):
        write_shard(tmp_path / f"{i:05d}.tar", {f"{i}{j}": image for j in range(3)})
    found = survey([str(tmp_path)], max_shards=4)
    assert list(found.samples_per_shard) == ["00000", "00006", "00013", "00019"]
    assert (found.num_shards, found.num_samples, found.estimated_samples) == (20, 12, 60)


def test_damage_is_named(tmp_path: Path, shards_dir: Path) -> None:
    (tmp_path / "cut.tar").write_bytes((shards_dir / "00000.tar").read_bytes()[:200_000])
    (tmp_path / "page.tar").write_text("<html>" * 1000)
    assert set(survey([str(tmp_path)], max_shards=5).damage) == {"cut", "page"}


def test_warnings_are_shown(tmp_path: Path) -> None:
    image = jpeg(Image.new("RGB", (64, 48)))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.jpg", "0.jpg", "README"):
            add_member(tar, name, image)
    found = survey([str(tmp_path)], max_shards=5)
    assert len(found.warnings["a"]) == 2
    printed = CliRunner().invoke(app, ["inspect", "--input", str(tmp_path)]).output
    assert "members that came twice" in printed
    assert "README" in printed


def test_a_folder_of_images_is_an_input_too(tmp_path: Path, photos: list[Image.Image]) -> None:
    photos[0].save(tmp_path / "a.png")
    photos[1].save(tmp_path / "b.webp")
    found = survey([str(tmp_path)], max_shards=1)
    assert found.formats == {"png": 1, "webp": 1}


def test_a_list_of_parquet_is_an_input(tmp_path: Path) -> None:
    image = jpeg(Image.new("RGB", (64, 48)))
    pq.write_table(pa.table({"image": [image, image]}), tmp_path / "a.parquet")
    (tmp_path / "list.txt").write_text(f"# one file\n{tmp_path}/a.parquet\n")
    found = survey([f"@{tmp_path}/list.txt"], max_shards=1)
    assert (found.samples_per_shard, found.formats) == ({"a": 2}, {"jpeg": 2})


@pytest.mark.parametrize("text", ["a.png", "*.png"])
def test_images_are_an_input(tmp_path: Path, text: str) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "b.webp")
    found = survey([str(tmp_path / text)], max_shards=1)
    assert (found.samples_per_shard, found.formats) == ({"00000": 1}, {"png": 1})


def test_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        survey([str(tmp_path)], max_shards=1)
