"""The files that an input text names, and the kind of what was found."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dali_aesthetic import Config, ModelConfig, Threshold, run
from dali_aesthetic.shards import InputError, plan_shards
from dali_aesthetic.types import Shard
from dali_aesthetic.write.output import OutputMismatch
from tests.conftest import jpeg
from tests.shards.tar_factory import JPEG, joined, read_one, unpack
from tests.shards.test_plan import touch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a caption beside an image, images of two extensions and a folder below."""
    root = tmp_path / "folder"
    touch(root, "a.txt", "a.jpg.json", "c.png", "notes.md", ".hidden.jpg", "sub/d.jpg", "sub/d.txt")
    for name in ("a.jpg", "b.jpg"):
        (root / name).write_bytes(JPEG)
    return root


def images(*texts: str | Path) -> list[str]:
    shards = plan_shards([str(text) for text in texts])
    assert {shard.kind for shard in shards} == {"folder"}
    return [name for shard in shards for name in shard.files]


def test_a_single_image_is_an_input(folder: Path) -> None:
    (shard,) = plan_shards(folder / "a.jpg")
    assert (shard.kind, shard.name, shard.source) == ("folder", "00000", str(folder))
    samples, _ = read_one(shard)
    assert [sample.key for sample in samples] == ["a"]
    assert unpack(joined(samples)) == [("a.jpg", JPEG), ("a.txt", b"x"), ("a.jpg.json", b"x")]


def test_a_pattern_of_images_takes_their_sidecars_and_no_other_image(folder: Path) -> None:
    assert images(folder / "*.jpg") == ["a.jpg", "a.txt", "a.jpg.json", "b.jpg"]
    assert images(folder / "**/*.jpg") == ["a.jpg", "a.txt", "a.jpg.json", "b.jpg", "sub/d.jpg", "sub/d.txt"]
    assert images(folder / "{b,c}.*") == ["b.jpg", "c.png"]
    assert images(folder / "a.jpg", folder / "b.jpg") == images(folder / "*.jpg"), "as a shell expands it"


def test_a_pattern_leaves_out_other_files_like_a_folder(folder: Path) -> None:
    touch(folder, "tars/0.tar", "tars/README.md", "tars/old.tar.gz")
    assert images(folder / "a*") == ["a.jpg", "a.txt", "a.jpg.json"]
    assert [shard.name for shard in plan_shards(folder / "tars" / "[0R]*")] == ["0"]
    with pytest.raises(InputError, match=r"old\.tar\.gz is compressed"):
        plan_shards(folder / "tars" / "*")
    with pytest.raises(InputError, match=r"notes.md is neither"):
        plan_shards(folder / "*.md")


def test_a_list_in_another_encoding_is_refused_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("a.tar\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"list.txt is not UTF-8 .*; save it as UTF-8"):
        plan_shards(f"@{tmp_path}/list.txt")


@pytest.mark.parametrize("text", ["photo.jpg", "./photo.jpg", "*.jpg", "."])
def test_a_relative_image_has_the_key_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "photo.jpg").write_bytes(JPEG)
    monkeypatch.chdir(tmp_path)
    (shard,) = plan_shards(text)
    samples, _ = read_one(shard)
    assert [(sample.key, sample.message) for sample in samples] == [("photo", "")]


def test_a_pattern_that_matches_all_gives_the_shards_of_the_folder(folder: Path) -> None:
    def shards(text: Path) -> list[Shard]:
        return list(plan_shards(text, samples_per_shard=2))

    assert len(shards(folder)) == 2
    assert shards(folder / "**/*.*g") == shards(folder)
    before = shards(folder / "*.jpg")
    assert shards(folder / "*.jpg") == before
    (folder / "b.jpg").write_bytes(JPEG + b"longer")
    assert [shard.name for shard in shards(folder / "*.jpg")] == [shard.name for shard in before]
    assert shards(folder / "*.jpg") != before


def test_a_run_of_a_pattern_is_resumed_and_keeps_what_a_run_of_the_folder_keeps(
    tmp_path: Path, photos: list[Image.Image], tiny_model: ModelConfig
) -> None:
    for number in range(3):
        (tmp_path / f"in/{number}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / f"in/{number}.jpg").write_bytes(jpeg(photos[number]))
        (tmp_path / f"in/{number}.txt").write_text(f"caption {number}")

    def score(text: str, output: str) -> int:
        config = Config(
            input=(str(tmp_path / text),),
            output=str(tmp_path / output),
            device="cpu",
            model=tiny_model,
            threshold=Threshold(raw=-100.0),
        )
        return run(config).num_skipped

    assert score("in", "folder") == score("in/*.jpg", "pattern") == 0
    for name in ("shards/00000.tar", "scores/00000.parquet"):
        assert (tmp_path / "pattern" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
    assert score("in/*.jpg", "pattern") == 1
    (tmp_path / "in/3.jpg").write_bytes(jpeg(photos[3]))
    with pytest.raises(OutputMismatch, match="changed since it was written"):
        score("in/*.jpg", "pattern")


def test_a_list_of_images_may_name_folders_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"# some\n{folder}/b.jpg\n\n{folder}/sub\n")
    assert images(f"@{tmp_path / 'list.txt'}") == ["b.jpg", "sub/d.jpg", "sub/d.txt"]


def test_folders_of_images_are_one_input(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.jpg", "y/1.jpg", "y/1.txt")
    assert images(tmp_path / "x", tmp_path / "y") == ["x/1.jpg", "y/1.jpg", "y/1.txt"]
    with pytest.raises(InputError, match=r"1\.jpg is given twice"):
        plan_shards([tmp_path / "x", tmp_path / "x/1.jpg"])


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_list_of_parquet_keeps_its_order(tmp_path: Path, mark: str) -> None:
    touch(tmp_path, "d/a.parquet", "d/b.parquet", "d/e/c.parquet")
    lines = f"{mark}# the good ones\r\n{tmp_path}/d/b.parquet\r\n\r\n{tmp_path}/d/a.parquet\r\n"
    (tmp_path / "list.txt").write_text(lines, newline="")
    shards = plan_shards(f"@{tmp_path / 'list.txt'}")
    assert [(shard.kind, shard.name) for shard in shards] == [("parquet", "b"), ("parquet", "a")]
    (tmp_path / "list.txt").write_text(f"{tmp_path}/d/e\n{tmp_path}/d/[ab].parquet\n")
    assert [shard.name for shard in plan_shards(f"@{tmp_path / 'list.txt'}")] == ["e/c", "a", "b"]


def test_the_home_folder_is_known_in_lists_and_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.tar", "b.tar")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "list.txt").write_text("~/b.tar\n~/[a].tar\n")
    assert [shard.source for shard in plan_shards("~/a.tar")] == [f"{tmp_path}/a.tar"]
    assert [shard.source for shard in plan_shards("@~/list.txt")] == [
        f"{tmp_path}/b.tar",
        f"{tmp_path}/a.tar",
    ]


@pytest.mark.parametrize("other", ["a.parquet", "a.jpg", "a.npy"])
def test_a_mixture_of_kinds_names_both(tmp_path: Path, other: str) -> None:
    touch(tmp_path, "0.tar", other)
    (tmp_path / "list.txt").write_text(f"{tmp_path}/0.tar\n{tmp_path}/{other}\n")
    for texts in (
        [f"{tmp_path}/0.tar", f"{tmp_path}/{other}"],
        [f"@{tmp_path}/list.txt"],
        [f"{tmp_path}/{{0.tar,{other}}}"],
        [f"{tmp_path}/[0a].*"],
    ):
        with pytest.raises(InputError, match=rf"0\.tar is a tar, and .*{other} .*of one kind"):
            plan_shards(texts)


def test_embeddings_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "img_emb/img_emb_0.npy", "metadata/metadata_0.parquet")
    for text in (tmp_path, tmp_path / "img_emb/*.npy"):
        with pytest.raises(InputError, match=r"img_emb_0\.npy holds embeddings.*`score-embeddings`"):
            plan_shards(text)
    (shard,) = plan_shards(tmp_path / "**/*.parquet")
    assert (shard.kind, shard.name) == ("parquet", "metadata_0")


def test_embeddings_that_a_run_saved_do_not_make_its_parquet_input_embeddings(tmp_path: Path) -> None:
    touch(tmp_path, "0.parquet", "kept/shards/0.parquet", "kept/embeddings/img_emb/img_emb_0.npy")
    (tmp_path / "kept/run.json").write_text(f'{{"identity": {{"input": ["{tmp_path}"]}}}}')
    assert [shard.name for shard in plan_shards(tmp_path)] == ["0"]


@pytest.mark.parametrize("name", ["a.jpg", "a.npy"])
def test_images_and_embeddings_must_be_local(tmp_path: Path, name: str) -> None:
    (tmp_path / "list.txt").write_text(f"s3://bucket/{name}\n")
    for text in (f"s3://bucket/{name}", f"@{tmp_path}/list.txt"):
        with pytest.raises(InputError, match=r"must be local; download it"):
            plan_shards(text)


def test_an_input_that_holds_only_the_output_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "out/shards/0.tar")
    with pytest.raises(InputError, match="nothing there but the output"):
        plan_shards(tmp_path / "**/*.tar", output=tmp_path / "out")
