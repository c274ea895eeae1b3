"""The files of embeddings that an input names, and their metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dali_aesthetic.embeddings.files import find_embeddings, holds_embeddings
from dali_aesthetic.shards.listing import InputError


def _npy(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.eye(4, dtype=np.float16))
    return path


def _parquet(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image_path": ["a", "b", "c", "d"]}), path)
    return path


def test_clip_retrievals_layout(tmp_path: Path) -> None:
    for number in range(2):
        _npy(tmp_path / f"img_emb/img_emb_{number}.npy")
        _npy(tmp_path / f"text_emb/text_emb_{number}.npy")
        _parquet(tmp_path / f"metadata/metadata_{number}.parquet")
    found = find_embeddings(tmp_path)
    assert [file.name for file in found] == ["img_emb_0", "img_emb_1"]
    assert [Path(file.metadata).name for file in found] == ["metadata_0.parquet", "metadata_1.parquet"]
    assert find_embeddings(tmp_path / "img_emb") == found


def test_laions_layout(tmp_path: Path) -> None:
    for part in ("laion2B-en", "laion2B-multi"):
        _npy(tmp_path / part / "img_emb/img_emb_0000.npy")
        _parquet(tmp_path / part / f"{part}-metadata/metadata_0000.parquet")
    found = find_embeddings(tmp_path)
    assert [file.name for file in found] == [
        "laion2B-en/img_emb/img_emb_0000",
        "laion2B-multi/img_emb/img_emb_0000",
    ]
    assert all(file.metadata.endswith("metadata_0000.parquet") for file in found)
    assert "multi-metadata" in found[1].metadata


def test_plain_files_patterns_and_lists(tmp_path: Path) -> None:
    paths = [_npy(tmp_path / f"{name}.npy") for name in ("a", "b", "c")]
    (tmp_path / "some.txt").write_text(f"{paths[2]}\n{paths[0]}\n")
    names = {
        str(paths[1]): ["b"],
        str(tmp_path / "{a,b}.npy"): ["a", "b"],
        str(tmp_path / "[bc].npy"): ["b", "c"],
        f"@{tmp_path}/some.txt": ["a", "c"],
        str(tmp_path): ["a", "b", "c"],
    }
    assert {text: [file.name for file in find_embeddings(text)] for text in names} == names
    assert all(not file.metadata for file in find_embeddings(tmp_path))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_list_may_hold_comments_and_a_byte_order_mark(tmp_path: Path, mark: str) -> None:
    path = _npy(tmp_path / "a.npy")
    (tmp_path / "list.txt").write_text(f"{mark}# made on Windows\n\n{path}\n")
    for text in (f"@{tmp_path}/list.txt", str(path)):
        assert holds_embeddings([text])
        assert [file.path for file in find_embeddings(text)] == [str(path)]


def test_embeddings_beside_images_are_taken_where_they_are_asked_for(tmp_path: Path) -> None:
    path = _npy(tmp_path / "a.npy")
    path.with_name("a.jpg").write_bytes(b"x")
    assert not holds_embeddings([str(tmp_path)])
    assert [file.name for file in find_embeddings(tmp_path)] == ["a"]
    with pytest.raises(InputError, match=r"a\.jpg is an image; give a \.npy of embeddings"):
        find_embeddings(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg is an image, and .*a\.npy a \.npy of embeddings"):
        find_embeddings(tmp_path / "a.*")


def test_impossible_inputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    path = _npy(tmp_path / "img_emb/img_emb_1.npy")
    with pytest.raises(InputError, match=r"no \.npy of embeddings"):
        find_embeddings(tmp_path / "empty")
    with pytest.raises(InputError, match="must be local"):
        find_embeddings("s3://bucket/img_emb")
    with pytest.raises(InputError, match="given twice"):
        find_embeddings([path, path])
    _parquet(tmp_path / "metadata/metadata_0.parquet")
    with pytest.raises(InputError, match=r"has no metadata_1\.parquet, though .*metadata_0\.parquet"):
        find_embeddings(path)


def test_what_counts_as_embeddings(tmp_path: Path) -> None:
    _npy(tmp_path / "e/a.npy")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"x")
    _npy(tmp_path / "photos and notes/x.npy").with_name("1.jpg").write_bytes(b"x")
    _npy(tmp_path / "kept/embeddings/img_emb/img_emb_0.npy")
    (tmp_path / "kept/shards").mkdir()
    (tmp_path / "kept/shards/0.tar").write_bytes(b"x")
    names = ("e", "e/a.npy", "kept/embeddings", "photos", "photos/a.jpg", "photos and notes", "kept")
    found = [holds_embeddings(str(tmp_path / name)) for name in names]
    assert found == [True, True, True, False, False, False, False]


def test_metadata_lies_beside_a_link_not_beside_what_it_links_to(tmp_path: Path) -> None:
    blob = _npy(tmp_path / "blobs/aaa.npy")
    _parquet(tmp_path / "hub/metadata/metadata_0.parquet")
    (tmp_path / "hub/img_emb").mkdir()
    (tmp_path / "hub/img_emb/img_emb_0.npy").symlink_to(blob)
    (found,) = find_embeddings(tmp_path / "hub")
    assert found.metadata == str(tmp_path / "hub/metadata/metadata_0.parquet")


def test_metadata_in_two_folders_is_not_chosen_for_the_user(tmp_path: Path) -> None:
    _npy(tmp_path / "img_emb/img_emb_0.npy")
    for folder in ("laion2B-en-metadata", "laion1B-nolang-metadata"):
        _parquet(tmp_path / folder / "metadata_0.parquet")
    with pytest.raises(InputError, match=r"metadata twice, .*1B.* and .*2B"):
        find_embeddings(tmp_path)


def test_a_file_given_in_two_spellings_is_given_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _npy(tmp_path / "a.npy")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="given twice"):
        find_embeddings(["a.npy", "./a.npy"])
