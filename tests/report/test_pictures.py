"""Pictures come from the source of a sample, or from its kept shard, or are counted as missing."""

from __future__ import annotations

import base64
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dali_aesthetic.report import pictures
from dali_aesthetic.report.pictures import SIDE, Pick, Thumbnails, Unreachable, image_at
from dali_aesthetic.report.rows import committed_shards
from dali_aesthetic.report.survey import survey
from tests.conftest import add_member
from tests.report.outputs import Item, flat_jpeg, make_output


def picks_of(output: Path) -> list[Pick]:
    """Every pick of the page once, in rising order."""
    found = {(p.shard.name, p.row): p for _, _, picks in survey(output).picks.bands() for p in picks}
    return sorted(found.values(), key=lambda pick: pick.score)


def colour(uri: str) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.size == (SIDE, SIDE)
    return np.asarray(image.convert("RGB")).reshape(-1, 3).mean(0)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    shards = {
        f"s/{s}": [Item(f"k{s}{i}", float(i) + s / 4, json={"n": i}) for i in range(1, 9)] for s in range(2)
    }
    return make_output(tmp_path, shards)


def expected(score: float) -> np.ndarray:
    level = int(np.clip(score * 25, 0, 255))
    return np.array([level, 128, 255 - level])


def test_each_picture_is_its_samples_own(output: Path) -> None:
    pictures, picks = Thumbnails(output), picks_of(output)
    pictures.make(picks)
    shown = pictures.of(picks)
    assert len(shown) == len(picks) == 16
    assert not pictures.missing
    for picture in shown:
        assert colour(picture.uri) == pytest.approx(expected(picture.score), abs=4)


def test_where_the_source_is_gone_the_kept_ones_are_still_shown(output: Path) -> None:
    shutil.rmtree(output.parent / "in")
    pictures, picks = Thumbnails(output), picks_of(output)
    pictures.make(picks)
    kept = [pick for pick in picks if pick.kept]
    assert [picture.score for picture in pictures.of(picks)] == [pick.score for pick in kept]
    for picture in pictures.of(kept):
        assert colour(picture.uri) == pytest.approx(expected(picture.score), abs=4)
    assert pictures.missing.total() == len(picks) - len(kept) > 0
    assert all("can't be read: FileNotFoundError" in reason for reason in pictures.missing)


def test_another_sample_at_the_place_is_not_shown_for_it(output: Path) -> None:
    source = output.parent / "in" / "s" / "0.tar"
    with tarfile.open(source, "w") as tar:
        for i in range(9):
            add_member(tar, f"other{i}.jpg", flat_jpeg(9.0))
    with pytest.raises(Unreachable, match="another sample"):
        image_at(str(source), 0, "k01")


def test_a_picture_behind_a_large_member_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add_member(tar, "k.bin", bytes(3 << 20))
        add_member(tar, "k.jpg", b"\xff\xd8\xff picture")
        add_member(tar, "l.jpg", b"\xff\xd8\xff another")
    assert bytes(image_at(str(path), 0, "k")) == b"\xff\xd8\xff picture"


def test_the_image_is_chosen_as_the_reader_chooses(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add_member(tar, "k.webp", b"RIFF1234WEBP")
        add_member(tar, "k.jpg", b"\xff\xd8\xff first choice")
    assert bytes(image_at(str(path), 0, "k")) == b"\xff\xd8\xff first choice"
    with tarfile.open(path, "w") as tar:
        add_member(tar, "k.original", b"\xff\xd8\xff by its bytes")
        add_member(tar, "k.txt", b"text")
    assert bytes(image_at(str(path), 0, "k")) == b"\xff\xd8\xff by its bytes"


def test_an_image_that_lies_apart_or_is_a_link_is_found(tmp_path: Path) -> None:
    path, places = tmp_path / "a.tar", {}
    with tarfile.open(path, "w") as tar:
        for key in "kl":
            places[key] = tar.offset
            add_member(tar, f"{key}.txt", b"text")
        add_member(tar, "m.bin", bytes(3 << 20))
        for key in "kl":
            add_member(tar, f"{key}.jpg", b"\xff\xd8\xff of " + key.encode())
        places["n"] = tar.offset
        link = tarfile.TarInfo("n.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "l.jpg"
        tar.addfile(link)
    found = {key: bytes(image_at(str(path), place, key)) for key, place in places.items()}
    assert found == {key: b"\xff\xd8\xff of " + key.replace("n", "l").encode() for key in "kln"}


def test_a_tar_without_the_image_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add_member(tar, "k.txt", b"text")
    with pytest.raises(Unreachable, match="no image of the sample"):
        image_at(str(path), 0, "k")
    path.write_bytes(b"no tar at all " * 100)
    with pytest.raises(Unreachable, match="no image of the sample"):
        image_at(str(path), 0, "k")


def test_stored_embeddings_are_not_searched_for_images(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="holds no images"):
        image_at(str(tmp_path / "img_emb_0.npy"), 0, "k")


@pytest.mark.parametrize("plain", [True, False], ids=["binary", "struct"])
def test_a_parquet_files_row_is_found_in_any_row_group(tmp_path: Path, plain: bool) -> None:
    images = [flat_jpeg(float(i % 10)) + bytes([i]) for i in range(200)] + [None]
    values = images if plain else [{"bytes": image, "path": "x"} for image in images]
    table = pa.table({"caption": ["x"] * 201, "blob": [b"no image"] * 201, "image": values})
    path = str(tmp_path / "a.parquet")
    pq.write_table(table, path, row_group_size=90)
    assert [image_at(path, row, "k") for row in (0, 89, 90, 199)] == [images[i] for i in (0, 89, 90, 199)]
    for row in (200, 201):
        with pytest.raises(Unreachable, match="no image of the sample"):
            image_at(path, row, "k")


def test_an_image_file_is_its_own_source(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(flat_jpeg(3.0))
    assert bytes(image_at(str(tmp_path / "a.jpg"), 0, "a")) == flat_jpeg(3.0)


def test_a_picture_that_no_longer_decodes_is_left_out(tmp_path: Path) -> None:
    output = make_output(tmp_path, {"0": [Item("a", 5.0, image=b"\xff\xd8\xff no jpeg"), Item("b", 6.0)]})
    pictures, picks = Thumbnails(output), picks_of(output)
    pictures.make(picks)
    assert [picture.key for picture in pictures.of(picks)] == ["b"]
    assert pictures.missing == {"could not be drawn: UnidentifiedImageError": 1}


def test_the_total_size_is_bounded(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_TOTAL_BYTES", 600)
    drawn, picks = Thumbnails(output), picks_of(output)
    drawn.make(picks)
    assert 0 < len(drawn.of(picks)) < len(picks)
    assert drawn.missing["left out to keep the page small"] == len(picks) - len(drawn.of(picks))


def test_the_number_does_not_grow_with_the_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [Item(f"k{i:05d}", float(score)) for i, score in enumerate(rng.normal(5, 1, 2000))]
    output = make_output(tmp_path, {"0": rows})
    found = survey(output).picks
    assert all(len(picks) <= 8 for _, _, picks in found.bands())
    assert len(found.bands()) <= 18
    assert len(found.at_cut()) == 24


def test_shards_are_read_in_the_order_of_their_names(output: Path) -> None:
    assert [shard.name for shard in committed_shards(output)] == ["s/0", "s/1"]
