from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset

from dali_aesthetic.shards import InputError, plan_shards
from dali_aesthetic.shards.folder import clean_key, group_images, padding, tar_header
from dali_aesthetic.shards.opened import read_file
from dali_aesthetic.types import Shard, Status
from tests.shards.tar_factory import JPEG, PNG, joined, read_one, unpack


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def only_shard(root: Path, **options: bool) -> Shard:
    (shard,) = plan_shards(str(root), **options)
    return shard


def test_images_and_sidecars_become_members_with_their_own_bytes(tmp_path: Path) -> None:
    files = {
        "b.jpg": JPEG,
        "b.txt": b"text",
        "b.json": b'{"caption": "x"}',
        "sub/a.PNG": PNG,
        "sub/a.PNG.json": b"{}",
        "readme.txt": b"of no image",
        ".hidden.jpg": JPEG,
        ".git/x.jpg": JPEG,
    }
    samples, end = read_one(only_shard(folder(tmp_path / "in", files)))
    assert [(s.key, s.status) for s in samples] == [("b", Status.OK), ("sub/a", Status.OK)]
    assert unpack(joined(samples)) == [
        ("b.jpg", JPEG),
        ("b.json", b'{"caption": "x"}'),
        ("b.txt", b"text"),
        ("sub/a.PNG", PNG),
        ("sub/a.PNG.json", b"{}"),
    ]
    assert bytes(samples[0].sidecar or b"") == b'{"caption": "x"}'
    assert [(s.source, s.offset) for s in samples] == [
        (str(tmp_path / "in/b.jpg"), 0),
        (str(tmp_path / "in/sub/a.PNG"), 0),
    ]
    assert end.warnings == ()


def test_dots_and_equal_stems_give_unique_keys_that_webdataset_reads(tmp_path: Path) -> None:
    files = {
        "a.jpg": JPEG + b"1",
        "a.png": PNG + b"2",
        "a.txt": b"both",
        "a_jpg.jpg": JPEG + b"3",
        "v1.2.jpg": JPEG + b"4",
        "v1.2.json": b"{}",
        "v1_2.jpg": JPEG + b"5",
        "d.o.t/x.jpg": JPEG + b"6",
    }
    shard = only_shard(folder(tmp_path / "in", files))
    samples, _ = read_one(shard)
    keys = {s.key: bytes(s.image or b"")[-1:] for s in samples}
    assert keys == {
        "a_jpg_2": b"1",
        "a_png": b"2",
        "a_jpg": b"3",
        "v1_2_jpg": b"4",
        "v1_2_jpg_2": b"5",
        "d.o.t/x": b"6",
    }
    out = tmp_path / "out.tar"
    out.write_bytes(joined(samples))
    found = list(webdataset.WebDataset(str(out), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [s.key for s in samples]
    assert [sample.get("txt") for sample in found if sample["__key__"].startswith("a_")] == [
        b"both",
        b"both",
        None,
    ]
    assert [sample["__key__"] for sample in found if "json" in sample] == ["v1_2_jpg"]


def test_keys_do_not_depend_on_the_order_of_listing() -> None:
    files = [f"{stem}.{ext}" for stem in ("a", "a.b", "a_b", "c/a") for ext in ("jpg", "png", "txt", "JPG")]
    expected = group_images(files)
    for seed in range(20):
        random.Random(seed).shuffle(files)
        assert group_images(files) == expected
    assert len({sample.key for sample in expected}) == len(expected) == 12


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "a/../../x", "new\nline", "nul\0", "\udcff", "..", "a//b", "."]
)
def test_keys_can_not_climb_or_break_lines(name: str) -> None:
    key = clean_key(name)
    parts = key.split("/")
    assert key.isprintable()
    assert not {"", ".", ".."} & set(parts)


def test_odd_file_names_on_disk(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", {"new\nline.jpg": JPEG, "日本.jpg": PNG, "l" * 200 + ".jpg": JPEG})
    with open(os.fsencode(root) + b"/\xff\xfe.jpg", "wb") as file:
        file.write(JPEG)
    samples, _ = read_one(only_shard(root))
    assert [s.key for s in samples] == ["__", "l" * 200, "new_line", "日本"]
    assert unpack(joined(samples)) == [
        ("__.jpg", JPEG),
        ("l" * 200 + ".jpg", JPEG),
        ("new_line.jpg", JPEG),
        ("日本.jpg", PNG),
    ]


def test_bad_files_are_rows(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", {"empty.jpg": b"", "good.jpg": JPEG})
    (root / "link.jpg").symlink_to(root / "nowhere.jpg")
    shard = only_shard(root)
    samples, end = read_one(shard)
    assert [(s.key, s.status, s.image) for s in samples] == [
        ("empty", Status.EMPTY, None),
        ("good", Status.OK, JPEG),
        ("link", Status.MISSING_IMAGE, None),
    ]
    assert "link.jpg" in samples[2].message
    assert "link.jpg" in end.warnings[0]
    shutil.rmtree(root)
    samples, end = read_one(shard)
    assert [s.status for s in samples] == [Status.MISSING_IMAGE] * 3
    assert end.error == ""


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file whose reads fail")
def test_a_file_that_fails_while_it_is_read_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", {"a.jpg": JPEG})
    (root / "a.txt").symlink_to("/proc/self/mem")
    (sample,), end = read_one(only_shard(root, follow_links=True))
    assert sample.status is Status.MISSING_IMAGE
    assert sample.message == f"{root}/a.txt can't be read: Input/output error"
    assert f"{root}/a.txt" in end.warnings[0]


LINKS = "links that leave the input folder left out (--follow-links takes them)"
SPECIAL = "devices, pipes and sockets left out"


@pytest.mark.parametrize("suffix", ["jpg", "tar", "parquet"])
def test_links_that_leave_the_folder_are_taken_only_if_asked(tmp_path: Path, suffix: str) -> None:
    inside, outside = (
        {f"0.{suffix}": JPEG, f"b/1.{suffix}": JPEG},
        {f"x/2.{suffix}": JPEG, "3.txt": b"secret"},
    )
    root, other = folder(tmp_path / "in", inside), folder(tmp_path / "in-other", outside)
    (root / "b" / f"4.{suffix}").symlink_to(f"../0.{suffix}")
    (root / "0.txt").symlink_to(other / "3.txt")
    (root / "c").symlink_to("../in-other/x")
    (root / f"5.{suffix}").symlink_to(other / "gone")

    def found(**options: bool) -> tuple[set[str], tuple[str, ...]]:
        shards = plan_shards(str(root), **options)
        files = [file for shard in shards for file in shard.files or (shard.name,)]
        assert not any(shard.warnings for shard in shards[1:])
        return {file.removesuffix(f".{suffix}") for file in files}, shards[0].warnings

    assert found() == ({"0", "b/1", "b/4"}, (f"{LINKS}: 3 (first: '0.txt', '5.{suffix}', 'c')",))
    sidecar = {"0.txt"} if suffix == "jpg" else set()
    assert found(follow_links=True) == ({"0", "5", "b/1", "b/4", "c/2"} | sidecar, ())
    if suffix == "jpg":
        (shard,) = plan_shards(f"{root}/*.jpg")  # names its images, but not what lies beside them
        assert shard.files == ("0.jpg", "5.jpg")
        assert shard.warnings == (f"{LINKS}: 1 (first: '{root}/0.txt')",)


def test_a_folder_of_nothing_but_links_to_elsewhere_says_how_to_take_them(tmp_path: Path) -> None:
    """As a snapshot in the cache of the Hugging Face hub."""
    folder(tmp_path / "blobs", {"a": JPEG})
    folder(tmp_path / "snapshot", {})
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.tar").symlink_to("../blobs/a")
    with pytest.raises(InputError, match=r"nothing to do .* 1 links that leave .*--follow-links takes them"):
        plan_shards(str(tmp_path / "snapshot"))


@pytest.mark.parametrize("follow_links", [False, True])
def test_devices_and_pipes_are_left_out_and_never_read(tmp_path: Path, follow_links: bool) -> None:
    root = folder(tmp_path / "in", {f"{n}.jpg": JPEG for n in range(4)})
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(root / "3.txt")
    for name, target in (
        ("0.txt", "/dev/zero"),
        ("1.txt", "../pipe"),
        ("2.json", "3.txt"),
        ("4.jpg", "3.txt"),
    ):
        (root / name).symlink_to(target)
    shard = only_shard(root, follow_links=follow_links)
    assert shard.files == ("0.jpg", "1.jpg", "2.jpg", "3.jpg")
    outside, special = (0, 5) if follow_links else (2, 3)
    assert [warning.partition(" (first")[0] for warning in shard.warnings] == [
        f"{kind}: {count}" for kind, count in ((SPECIAL, special), (LINKS, outside)) if count
    ]
    assert only_shard(root / "*.jpg", follow_links=True).files == (*shard.files, "4.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "tar", "parquet"])
@pytest.mark.parametrize("target", ["/dev/zero", "pipe"])
def test_a_device_or_pipe_that_is_named_fails_alone(tmp_path: Path, suffix: str, target: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / f"odd.{suffix}").symlink_to(target)
    (tmp_path / "list.txt").write_text(f"{tmp_path}/odd.{suffix}\n")
    for text in (f"@{tmp_path}/list.txt", f"{tmp_path}/*.{suffix}"):
        samples, end = read_one(only_shard(Path(text)))
        (why,) = [*(sample.message for sample in samples), *([end.error] if end.error else [])]
        assert f"{tmp_path}/odd.{suffix} can't be read" in why
        assert "it is a device, a pipe or a socket and no file" in why


def test_a_file_that_grows_while_it_is_read_is_no_sample(tmp_path: Path) -> None:
    (tmp_path / "status").symlink_to("/proc/self/status")  # states 0 bytes and has more
    with pytest.raises(OSError, match="it grew while it was read"):
        read_file(str(tmp_path / "status"), 1 << 20)


def test_large_files_are_read_whole(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", {"a.jpg": JPEG + bytes(3 << 20)})
    samples, _ = read_one(only_shard(root))
    assert unpack(joined(samples)) == [("a.jpg", JPEG + bytes(3 << 20))]


@pytest.mark.parametrize(
    "name", ["a.jpg", "x" * 100, "x" * 101, "d/" * 200 + "a.jpg", "ü.jpg", "日" * 90 + ".jpg"]
)
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_headers_are_plain_and_read_by_tarfile(name: str, size: int) -> None:
    data = bytes(range(256)) * 3
    content = tar_header(name, size) + data[:size] + padding(size) + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        (info,) = tar
        assert (info.name, info.size, info.mode, info.uid, info.gid) == (name, size, 0o644, 0, 0)
        assert (info.mtime, info.uname, info.gname, info.type) == (0, "", "", tarfile.REGTYPE)
        assert tar.extractfile(info).read() == data[:size]  # type: ignore[union-attr]


def test_a_header_of_eight_gibibytes_or_more_has_its_size_in_pax() -> None:
    header = tar_header("big.jpg", 8**11)
    with tarfile.open(fileobj=io.BytesIO(header + bytes(1024))) as tar:
        assert tar.next().size == 8**11  # type: ignore[union-attr]


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
def test_gnu_tar_reads_the_headers(tmp_path: Path) -> None:
    names = ["a.jpg", "d/" * 100 + "a.jpg", "ü.jpg"]
    content = b"".join(tar_header(name, 3) + b"abc" + padding(3) for name in names) + bytes(1024)
    listed = subprocess.run(
        ["tar", "tf", "-", "--quoting-style=literal"], input=content, capture_output=True, check=True
    )
    assert listed.stdout.decode().split() == names
    assert listed.stderr == b""
