"""The comparison over real files: each file once, every difference a row, packed from git repositories."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from benchmarks import real_files
from benchmarks.real_files import Said, compare, pack, plain, product, reference
from benchmarks.results import Record, newest, read_results
from benchmarks.settings import Settings
from dali_aesthetic.config import ModelConfig
from tests.conftest import REPOSITORY
from tests.decode.damage import without_huffman_tables
from tests.decode.encoded import noise, photo, save

FILES = {
    "photos/a photo.jpg": save(photo(width=300, height=200)),
    "photos/grey.JPG": save(photo(width=300, height=200).convert("L")),
    "odd/palette.png": save(noise(60, 50, "P"), "PNG"),
    "odd/x.y.webp": save(photo(width=300, height=200), "WEBP"),
    "odd/no tables.jpg": without_huffman_tables(save(noise(60, 50))),
    "odd/other.pcx": save(noise(60, 50), "PCX"),
    "odd/large.bmp": save(noise(900, 700), "BMP"),
    "read me.txt": b"text",
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snapshots") / "OWNER+NAME"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "again.png").write_bytes(FILES["odd/palette.png"])
    (folder / "link.png").symlink_to("again.png")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "images"]):
        author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *author, *words], cwd=folder, check=True)
    return folder


def test_a_repository_is_packed_once_by_size(repository: Path, tmp_path: Path) -> None:
    (path,) = pack(tmp_path, [repository, repository])
    with tarfile.open(path) as tar:
        packed = {info.name: info.size for info in tar}
    assert sorted(packed.values()) == sorted(len(data) for name, data in FILES.items() if "txt" not in name)
    assert any(name.startswith("OWNER+NAME/") and name.endswith("-odd_x_y.webp") for name in packed)
    ((source, count),) = json.loads((tmp_path / "real" / "sources.json").read_text()).items()
    assert source.startswith("OWNER/NAME@")
    assert count == 7
    (smaller,) = pack(tmp_path / "less", [repository], most_bytes=200_000)
    with tarfile.open(smaller) as tar:
        assert len(tar.getmembers()) == 6, "without the large one"


def test_pieces_hold_what_fits(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_files, "_PIECE_BYTES", 1)
    assert len(pack(tmp_path, [repository])) == 7


def test_every_file_is_scored_twice_and_differences_are_rows(
    repository: Path, tmp_path: Path, tiny_model: ModelConfig
) -> None:
    tars = pack(tmp_path, [repository])
    settings = Settings(
        device="cpu", encoder=tiny_model.encoder, precision="fp32", data=tmp_path, results=tmp_path
    )
    ours, theirs = product(tars, settings), reference(tars, settings)
    assert ours.keys() == theirs.keys()
    record = settings.record("real-files")
    compare(record, ours, theirs)
    rows = {row["name"]: row for row in record.rows}
    assert (rows["files"]["median"], rows["read by both"]["median"]) == (7, 5)
    assert rows["scores that differ by over 0.01"]["median"] == 0
    assert rows["refused by both"]["median"] == 1
    (alone,) = (row for name, row in rows.items() if name.startswith("read by the reference alone"))
    assert alone["files"][0].endswith("odd_other")
    assert alone["why"] == "a format that isn't taken"
    assert rows["score difference, largest"]["reference_std"] > 0


def test_a_difference_without_a_known_reason_has_no_explanation(tmp_path: Path) -> None:
    ours = {"a": Said(5.0), "b": Said(None, "undecodable: odd 12"), "c": Said(4.0)}
    theirs = {"a": Said(5.5), "b": Said(1.0), "c": Said(None, "OSError: no 7")}
    record = Record("real-files", tmp_path, Settings(device="cpu").chip, {})
    compare(record, ours, theirs)
    rows = {row["name"]: row for row in record.rows}
    assert rows["scores that differ by over 0.01"]["files"] == ["a (0.500)"]
    assert rows["read by the reference alone: undecodable: odd #"]["why"] == ""
    assert rows["read by the product alone: OSError: no #"]["files"] == ["c"]


def test_messages_lose_what_differs_between_files() -> None:
    assert plain("no image (.psd, .txt)") == "no image …"
    assert plain("begins with b'\\x00\\x01' at 1,234") == "begins with … at #"


def test_no_committed_difference_is_unexplained() -> None:
    for result in newest(read_results(REPOSITORY / "benchmarks" / "results"), "real-files").values():
        counts = {row.name: row.median for row in result.rows}
        assert counts["files"] >= 3000
        assert counts["read by both"] > counts["files"] / 2
        alone = [row for row in result.rows if "alone" in row.name or row.name.startswith("scores that")]
        assert [row.name for row in alone if row.median and not row.detail["why"]] == []
