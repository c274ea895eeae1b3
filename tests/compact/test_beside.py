"""DALI's index: the same as its own tool writes, and usable by its reader."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from dali_aesthetic.compact.beside import index_of
from dali_aesthetic.compact.job import Options, compact
from dali_aesthetic.compact.pack import Size
from dali_aesthetic.config import ConfigError
from tests.compact.runs import make_run, many


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    run = make_run(folder, many(3, 23))
    compact(Options(run=run, output=folder / "packed", size=Size(samples=12), index=True))
    return folder / "packed" / "shards"


def test_it_is_what_wds2idx_writes(packed: Path, tmp_path: Path) -> None:
    import wds2idx

    tars = sorted(packed.glob("*.tar"))
    assert len(tars) == 3
    for tar in tars:
        with wds2idx.IndexCreator(str(tar), str(tmp_path / "theirs.idx"), verbose=False) as creator:
            creator.create_index()
        assert tar.with_suffix(".idx").read_text() == (tmp_path / "theirs.idx").read_text()


def test_dalis_webdataset_reader_reads_by_it(packed: Path) -> None:
    from nvidia.dali import fn, pipeline_def

    tars = sorted(packed.glob("*.tar"))

    @pipeline_def(batch_size=4, num_threads=1, device_id=None)
    def pipeline() -> object:
        images, texts = fn.readers.webdataset(
            paths=[str(tar) for tar in tars],
            index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
            ext=["jpg", "json"],
            missing_component_behavior="error",
        )
        return images, texts

    reader = pipeline()
    found = []
    for _ in range(8):
        images, _ = reader.run()
        found += [bytes(images.at(i).tobytes()) for i in range(4)]
    expected = []
    for tar in tars:
        with tarfile.open(tar) as file:
            expected += [file.extractfile(m).read() for m in file if m.name.endswith(".jpg")]  # type: ignore[union-attr]
    assert len(expected) == 30
    assert found == [*expected, *expected[:2]], "then it begins again"


def test_an_index_can_be_added_later(packed: Path, tmp_path: Path) -> None:
    run = packed.parents[1] / "out"
    options = Options(run=run, output=tmp_path, size=Size(samples=12))
    compact(options)
    assert not list(tmp_path.rglob("*.idx"))
    compact(Options(run=run, output=tmp_path, size=Size(samples=12), index=True))
    assert [path.name for path in sorted((tmp_path / "shards").glob("*.idx"))] == [
        "00000.idx",
        "00001.idx",
        "00002.idx",
    ]


def test_long_names_are_found_behind_their_extension_headers(tmp_path: Path) -> None:
    """GNU tar, which `wds2idx` calls, gives the block of the extension header there."""
    name = "folder/" * 30 + "key.JPG"
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "long.tar", "w", format=format) as tar:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
        extension, offset, size, found = index_of(tmp_path / "long.tar").splitlines()[1].split(" ")
        assert (extension, found) == ("JPG", name)
        content = (tmp_path / "long.tar").read_bytes()
        assert content[int(offset) : int(offset) + int(size)] == b"abc"


def test_names_that_the_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "spaces.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a key.jpg"))
    with pytest.raises(ConfigError, match=r"'a key.jpg'; DALI's index has no names with spaces"):
        index_of(tmp_path / "spaces.tar")
