from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from dali_aesthetic import Config, ModelConfig, Threshold, run
from dali_aesthetic.inspect_input import survey
from dali_aesthetic.layout import committed_names
from dali_aesthetic.shards import InputError, plan_shards, read_shards
from dali_aesthetic.shards.listing import expand_braces
from dali_aesthetic.types import Sample
from dali_aesthetic.verify.outputs import verify_output
from tests.conftest import jpeg
from tests.shards.tar_factory import JPEG, pack, sample_members


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def names_and_sources(root: Path, *inputs: str) -> list[tuple[str, str]]:
    shards = plan_shards([str(root / text) for text in inputs])
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert {shard.kind for shard in shards} == {"tar"}
    return [(shard.name, os.path.relpath(shard.source, root)) for shard in shards]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    return touch(
        tmp_path,
        *("a/00000.tar", "a/00001.tar", "b/00000.tar", "b/deep/00002.tar"),
        *("a/00000.json", "a/notes.txt", "b/.tmp-x.tar", ".hidden/00009.tar"),
    )


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["a/00001.tar"], ["00001"]),
        (["a"], ["00000", "00001"]),
        (["."], ["a/00000", "a/00001", "b/00000", "b/deep/00002"]),
        (["a/*.tar"], ["00000", "00001"]),
        (["*/00000.tar"], ["a/00000", "b/00000"]),
        (["**/*.tar"], ["a/00000", "a/00001", "b/00000", "b/deep/00002"]),
        (["b*"], ["b/00000", "b/deep/00002"]),
        (["a/{00000..00001}.tar"], ["00000", "00001"]),
        (["{b,a}/00000.tar"], ["a/00000", "b/00000"]),
        (["{a,b}/*.tar"], ["a/00000", "a/00001", "b/00000"]),
        (["a/00000.tar", "a/00001.tar"], ["00000", "00001"]),
        (["a/00000.tar", "b/00000.tar"], ["a/00000", "b/00000"]),
        (["a", "b/deep"], ["a/00000", "a/00001", "b/deep/00002"]),
    ],
)
def test_names_come_from_the_path_below_the_fixed_root(
    tars: Path, inputs: list[str], expected: list[str]
) -> None:
    found = names_and_sources(tars, *inputs)
    assert [name for name, _ in found] == expected
    assert all(source.endswith(f"{name}.tar") for name, source in found)


def test_relative_inputs_name_the_same_shards(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tars / "a")
    assert [s.name for s in plan_shards("00000.tar")] == ["00000"]
    assert [s.name for s in plan_shards(".")] == ["00000", "00001"]
    assert [s.name for s in plan_shards("./*.tar")] == ["00000", "00001"]
    assert [s.name for s in plan_shards("../{a,b}/00000.tar")] == ["a/00000", "b/00000"]
    assert [s.name for s in plan_shards(["../b/00000.tar", "00000.tar"])] == ["a/00000", "b/00000"]


def test_a_list_file_keeps_its_order(tars: Path) -> None:
    listing = tars / "list.txt"
    listing.write_text(f"# the good ones\n\n{tars}/b/00000.tar\n  {tars}/a/00001.tar  \n{tars}/a/00000.tar\n")
    shards = plan_shards(f"@{listing}")
    assert [shard.name for shard in shards] == ["b/00000", "a/00001", "a/00000"]


@pytest.mark.parametrize("first", ["# made on Windows", "s3://bucket/a/00001.tar"])
def test_a_list_file_of_a_windows_editor(tmp_path: Path, first: str) -> None:
    (tmp_path / "list.txt").write_text(
        f"{first}\r\ns3://bucket/a/00000.tar\r\n", encoding="utf-8-sig", newline=""
    )
    shards = plan_shards(f"@{tmp_path / 'list.txt'}")
    assert [shard.name for shard in shards] == (["00000"] if first[0] == "#" else ["00001", "00000"])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["nothing.tar"], ["nothing.tar", "does not exist"]),
        (["*.zip"], ["*.zip", "matches nothing"]),
        (["{00000..00003}.tar"], ["{00000..00003}.tar", "4 of its 4", "00000.tar"]),
        (["a/{00000..00020}.tar"], ["19 of its 21", "00002.tar", "00006.tar, …"]),
        (["a/{00000..00003.tar"], ["{00000..00003.tar"]),
        (["a/notes.txt"], ["neither a .tar nor a folder", "@"]),
        (["@missing.txt"], ["missing.txt", "can't be read"]),
        (["a/00000.tar", "a/00000.tar"], ["given twice"]),
        ([""], ["nothing to do in"]),
    ],
)
def test_nothing_found_names_the_input_and_what_was_looked_for(
    tars: Path, inputs: list[str], words: list[str]
) -> None:
    root = tars if inputs != [""] else touch(tars / "empty", "notes.md").parent / "empty"
    with pytest.raises(InputError) as error:
        plan_shards([f"@{root}/{text[1:]}" if text.startswith("@") else str(root / text) for text in inputs])
    for word in words:
        assert word in str(error.value)


def test_an_empty_folder_an_empty_input_and_no_input_are_errors(tmp_path: Path) -> None:
    for inputs in (str(tmp_path), "", []):
        with pytest.raises(InputError):
            plan_shards(inputs)


@pytest.mark.parametrize("text", ["", "# only a comment\n\n", "@other.txt\n", "/no/such/00000.tar\n"])
def test_a_list_file_without_shards_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=r"list\.txt"):
        plan_shards(f"@{tmp_path / 'list.txt'}")


def test_a_shard_with_a_hidden_name_is_one_that_readers_of_the_output_see(
    tmp_path: Path, tiny_model: ModelConfig
) -> None:
    source = tmp_path / ".hidden.tar"
    source.write_bytes(pack([("a.jpg", jpeg(Image.new("RGB", (40, 40))))]))
    output = tmp_path / "out"
    run(Config(input=(str(source),), output=str(output), model=tiny_model, threshold=Threshold(raw=-1e9)))
    (name,) = committed_names(output)
    assert name.startswith("_hidden-")
    assert not verify_output(output).problems
    assert [shard.name for shard in plan_shards(str(source), output=str(output))] == [name]


def test_names_that_files_of_an_output_cant_have_stop_no_run(tmp_path: Path, tiny_model: ModelConfig) -> None:
    """A name above what a file system takes, one whose folder is another shard's file, and one name twice."""
    output, names = (
        tmp_path / "out",
        ("a", "a.json/b", "a.parquet/b", "img_emb_a.npy/b", "x" * 249, "y\n\udcff", "a.TAR"),
    )
    for name in names:
        path = tmp_path / "in" / (name if name.endswith("TAR") else f"{name}.tar")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack([("a.jpg", jpeg(Image.new("RGB", (40, 40))))]))
    for text in (str(tmp_path / "in"), f"file://{tmp_path}/in"):
        config = Config(
            input=(text,),
            output=f"{output}{len(text)}",
            model=tiny_model,
            threshold=Threshold(raw=-1e9),
            save_embeddings=True,
        )
        result = run(config)
        assert (result.exit_code, len(result.stats.reports)) == (0, len(names))
        assert not verify_output(Path(config.output), against_input=True).problems
        assert run(config).num_skipped == len(names)


def test_of_files_that_differ_in_the_extension_one_keeps_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.TAR", "a.Tar", "a.tar", "b.TAR")
    names = dict(names_and_sources(tmp_path, "."))
    assert {names["a"], names["b"]} == {"a.tar", "b.TAR"}
    assert all(name.startswith("a-") and len(name) == 14 for name in names.keys() - {"a", "b"})
    assert names == dict(names_and_sources(tmp_path, "a.TAR", "b.TAR", "a.tar", "a.Tar"))


def test_the_summary_counts_links_that_were_left_out_and_so_does_inspect(
    tmp_path: Path, tiny_model: ModelConfig
) -> None:
    for place in ("in/a.jpg", "elsewhere/b.jpg"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(jpeg(Image.new("RGB", (40, 40))))
    (tmp_path / "in" / "b.jpg").symlink_to(tmp_path / "elsewhere" / "b.jpg")
    expected = "links that leave the input folder left out (--follow-links takes them): 1 in 1 shard"
    for follow_links in (False, True):
        output = tmp_path / f"out{follow_links}"
        config = Config(
            input=(str(tmp_path / "in"),),
            output=str(output),
            model=tiny_model,
            threshold=Threshold(raw=-1e9),
            follow_links=follow_links,
        )
        result = run(config)
        assert result.stats.num_samples == 1 + follow_links
        warnings = result.stats.reports.warnings.lines()
        assert [line.startswith(expected) for line in warnings] == [True] * (not follow_links)
        assert not verify_output(output, against_input=True).problems
        found = survey(config.input, 1, follow_links=follow_links)
        assert (found.num_samples, len(found.warnings)) == (1 + follow_links, 1 - follow_links)


def test_a_folder_of_tars_and_images_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "00000.tar", "1.jpg", "2.jpg")
    with pytest.raises(InputError, match=r"1 tars .* 2 images .*\*\*/\*\.tar"):
        plan_shards(str(tmp_path))


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst"])
def test_compressed_tars_are_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    for text in (tmp_path / name, tmp_path, tmp_path / "*"):
        with pytest.raises(InputError, match="decompress"):
            plan_shards(str(text))


def test_the_output_below_the_input_is_not_input(tars: Path) -> None:
    touch(tars, "out/shards/00000.tar")
    assert "out/shards/00000" in [s.name for s in plan_shards(str(tars))]
    for text in (tars, tars / "**" / "*.tar"):
        names = [s.name for s in plan_shards(str(text), output=tars / "out")]
        assert names == ["a/00000", "a/00001", "b/00000", "b/deep/00002"]


@pytest.mark.parametrize("name", ["00000.tar", "1.jpg", "a.parquet"])
def test_an_output_that_is_the_input_is_refused_before_it_holds_anything(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "data", name)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for output in (tmp_path / "data", tmp_path / "data" / "x" / "..", tmp_path / "link"):
        with pytest.raises(InputError, match="is the input itself; give a folder of its own"):
            plan_shards(str(tmp_path / "data"), output=output)
    assert len(plan_shards(str(tmp_path / "data"), output=tmp_path / "data" / "kept")) == 1


def test_folders_linked_in_a_circle_are_walked_once(tars: Path) -> None:
    (tars / "b" / "up").symlink_to(tars)
    (tars / "outside").symlink_to(tars / "a")
    names = [s.name for s in plan_shards(str(tars))]
    assert len(names) == 4
    assert [name for name in names if name.endswith("00001")] in (["a/00001"], ["outside/00001"])


@pytest.mark.parametrize("backwards", [False, True])
def test_names_do_not_depend_on_the_order_of_a_directory(
    tars: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    for link in ("0", "z"):
        (tars / link).symlink_to(tars / "a")
    for link in ("1", "y"):
        (tars / link).symlink_to(touch(tars / ".elsewhere", "00003.tar"))
    scandir = os.scandir

    @contextmanager
    def ordered(path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(path) as entries:
            yield iter(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

    monkeypatch.setattr(os, "scandir", ordered)
    names = [s.name for s in plan_shards(str(tars))]
    assert names == ["1/00003", "a/00000", "a/00001", "b/00000", "b/deep/00002"]


def test_listing_many_tars_asks_for_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(f"{n:05d}.tar" for n in range(300)))
    asked: list[object] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **kw: asked.append(path) or stat(path, **kw))
    for text in (tmp_path, tmp_path / "*.tar", tmp_path / "{00000..00299}.tar"):
        assert len(plan_shards(str(text))) == 300
    assert len(asked) < 100


def test_files_of_a_folder_that_can_not_be_listed_are_found(
    tars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", refuse)
    (tars / "list.txt").write_text(f"{tars}/a/00000.tar\n{tars}/a/00001.tar\n")
    for text in (tars / "a/{00000..00001}.tar", f"@{tars}/list.txt"):
        assert [shard.name for shard in plan_shards(str(text))] == ["00000", "00001"]
    with pytest.raises(InputError, match="1 of its 3 files do not exist"):
        plan_shards(str(tars / "a/{00000..00002}.tar"))


@pytest.mark.parametrize("text", ["{0..99999999999}.tar", "{a,b", "x}"])
def test_endless_or_broken_braces(text: str) -> None:
    if text == "x}":
        with pytest.raises(InputError):
            plan_shards(text)
    else:
        with pytest.raises(InputError):
            expand_braces(text)


@pytest.mark.parametrize(
    "text", ["s3://b/{0-3}.tar", "s3://b/{00000}.tar", "s3://b/{a,b}/{0-3}.tar", "{0}/*.tar"]
)
def test_braces_without_a_range_or_a_list_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_text(f"{text}\n")
    for given in (text, f"@{tmp_path / 'list.txt'}"):
        with pytest.raises(InputError, match=r"hold no range and no list; write \{00000\.\.00123\}\.tar"):
            plan_shards(given)


def test_urls_are_listed_by_their_file_system() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a/00000.tar", "a/00001.tar", "b/00000.tar", "b/x.json"):
        memory.pipe_file(f"/bucket/{name}", pack(sample_members(["k"])))
    for text, names in [
        ("memory://bucket/a/00001.tar", ["00001"]),
        ("memory://bucket/a/{00000..00001}.tar", ["00000", "00001"]),
        ("memory://bucket/{a,b}/00000.tar", ["a/00000", "b/00000"]),
        ("memory://bucket/a", ["00000", "00001"]),
        ("memory://bucket/*/00000.tar", ["a/00000", "b/00000"]),
    ]:
        shards = plan_shards(text)
        assert [shard.name for shard in shards] == names
        keys = [item.key for item in read_shards(shards) if isinstance(item, Sample)]
        assert keys == ["k"] * len(names)
    with pytest.raises(InputError, match="holds no"):
        plan_shards("memory://bucket/nothing")


def test_capital_letters_name_a_tar_at_a_url_as_in_a_local_folder(tmp_path: Path) -> None:
    names = ("A.TAR", "b.tar", "c/d.Tar")
    for name in names:
        fsspec.filesystem("memory").pipe_file(f"/capitals/{name}", b"")
    for text in (str(touch(tmp_path, *names)), "memory://capitals", "memory://capitals/**"):
        assert [shard.name for shard in plan_shards(text)] == ["A", "b", "c/d"]


def test_images_are_cut_into_shards_with_fingerprints(tmp_path: Path) -> None:
    for index in range(25):
        (tmp_path / f"{index:03d}.jpg").write_bytes(JPEG)
        (tmp_path / f"{index:03d}.txt").write_bytes(b"t")
    shards = plan_shards(str(tmp_path), samples_per_shard=10)
    assert [(s.name, s.kind, len(s.files)) for s in shards] == [
        ("00000", "folder", 20),
        ("00001", "folder", 20),
        ("00002", "folder", 10),
    ]
    assert len({s.fingerprint for s in shards}) == 3
    assert plan_shards(str(tmp_path), samples_per_shard=10) == shards
    (tmp_path / "015.txt").write_bytes(b"longer")
    changed = plan_shards(str(tmp_path), samples_per_shard=10)
    assert [a.fingerprint == b.fingerprint for a, b in zip(shards, changed, strict=True)] == [
        True,
        False,
        True,
    ]


def test_images_that_share_a_stem_stay_in_one_shard(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "b.png", "b.webp", "c.jpg")
    shards = plan_shards(str(tmp_path), samples_per_shard=2)
    assert [s.files for s in shards] == [("a.jpg", "b.jpg", "b.png", "b.webp"), ("c.jpg",)]
    with pytest.raises(InputError, match="samples_per_shard"):
        plan_shards(str(tmp_path), samples_per_shard=0)
