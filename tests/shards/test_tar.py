from __future__ import annotations

import io
import random
import tarfile
import time
from pathlib import Path

import pytest
import webdataset

from dali_aesthetic.decode.headers import Limits, probe
from dali_aesthetic.shards import members as members_module
from dali_aesthetic.shards import read_shards
from dali_aesthetic.shards.folder import tar_header
from dali_aesthetic.shards.scan import scan_tar
from dali_aesthetic.types import Shard, ShardEnd, Status
from tests.shards.tar_factory import JPEG, PNG, joined, pack, read_bytes, read_one, sample_members, unpack

FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def webdataset_samples(path: Path) -> list[dict[str, bytes]]:
    dataset = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return [{k: v for k, v in sample.items() if k not in ("__url__", "__local_path__")} for sample in dataset]


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_samples_are_those_of_webdataset_and_entries_are_the_tar_byte_for_byte(
    tmp_path: Path, format: int
) -> None:
    keys = ["000", "d.ir/b", "l" * 150, "x/" * 140 + "deep", "ünïcödé"]
    members = [*sample_members(keys), ("last.v2.PNG", PNG)]
    content = pack(members, format)
    samples, end = read_bytes(content, tmp_path)
    assert (end.damage, end.error, end.warnings) == ("", "", ())
    expected = webdataset_samples(tmp_path / "shard.tar")
    assert [sample.key for sample in samples] == [sample["__key__"] for sample in expected] == [*keys, "last"]
    assert [bytes(sample.image or b"") for sample in samples[:-1]] == [s["jpg"] for s in expected[:-1]]
    assert [bytes(sample.sidecar or b"") for sample in samples[:-1]] == [s["json"] for s in expected[:-1]]
    assert bytes(samples[-1].image or b"") == PNG
    entries = b"".join(bytes(entry) for sample in samples for entry in sample.entries)
    assert entries == content[: len(entries)]
    assert content[len(entries) :].strip(b"\0") == b""
    assert all(sample.status is Status.OK and sample.message == "" for sample in samples)
    assert [content[s.offset : s.offset + 512] == bytes(s.entries[0][:512]) for s in samples] == [True] * 6


def test_any_subset_of_samples_is_a_valid_tar(tmp_path: Path) -> None:
    keys = ["a", "b" * 200, "c", "ü" * 130]
    content = pack(sample_members(keys), tarfile.PAX_FORMAT)
    samples, _ = read_bytes(content, tmp_path)
    chosen = [samples[3], samples[1]]
    assert unpack(joined(chosen)) == sample_members([keys[3], keys[1]])


def test_tar_written_by_webdataset(tmp_path: Path) -> None:
    path = tmp_path / "w.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for index in range(3):
            writer.write({"__key__": f"k{index}", "jpg": JPEG, "txt": f"text {index}", "json": {"n": index}})
    samples, end = read_one(Shard(index=0, name="w", kind="tar", source=str(path)))
    assert end == ShardEnd(shard=end.shard)
    assert [sample.key for sample in samples] == ["k0", "k1", "k2"]
    assert bytes(samples[1].sidecar or b"") == b'{"n": 1}'


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_a_cut_tar_yields_every_whole_sample_and_never_a_part(tmp_path: Path, format: int) -> None:
    keys = ["a", "b" * 120, "c"]
    content = pack(sample_members(keys), format)
    whole, _ = read_bytes(content, tmp_path)
    # A sample is known to be whole as soon as the next one's name can be read.
    named = [member.data_offset for member in scan_tar(content) if member.name.endswith(".jpg")][1:]
    starts = [sample.offset for sample in whole[1:]]
    for cut in [*range(700, len(content), 501), *starts, *named, *(start + 1 for start in starts)]:
        samples, end = read_bytes(content[:cut], tmp_path)
        assert end.error == ""
        before = sum(offset <= cut for offset in named)
        assert [s.key for s in samples[:before]] == keys[:before]
        assert all(s.status is Status.OK for s in samples[:before])
        for sample in samples:
            assert unpack(joined([sample])) == [
                member for member in sample_members(keys) if member in unpack(joined([sample]))
            ]
            if sample.status is Status.OK:
                assert sample.image is not None
            else:
                assert sample.status is Status.TRUNCATED
                assert sample.image is None
                assert end.damage
                assert sample is samples[-1]


def test_a_cut_inside_a_later_member_marks_the_sample(tmp_path: Path) -> None:
    content = pack(sample_members(["a"]))
    samples, end = read_bytes(content[:2600], tmp_path)
    assert [(s.key, s.status) for s in samples] == [("a", Status.TRUNCATED)]
    assert "a.txt" in samples[0].message or "header" in samples[0].message
    assert end.damage


def test_a_missing_end_marker_is_a_warning(tmp_path: Path) -> None:
    content = pack([("a.jpg", JPEG)])[:1536]
    samples, end = read_bytes(content, tmp_path)
    assert [s.status for s in samples] == [Status.OK]
    assert end.damage == ""
    assert "end marker" in end.warnings[0]


def test_missing_padding_at_the_end_is_added(tmp_path: Path) -> None:
    content = pack([("a.jpg", JPEG)])
    samples, end = read_bytes(content[: 512 + len(JPEG)], tmp_path)
    assert samples[0].status is Status.OK
    assert end.damage == ""
    assert joined(samples) == content[: 512 + 1024 + 1024]


def test_samples_before_damage_are_kept(tmp_path: Path) -> None:
    content = bytearray(pack(sample_members(["a", "b", "c"])))
    whole, _ = read_bytes(bytes(content), tmp_path)
    content[whole[2].offset + 3] ^= 0xFF
    samples, end = read_bytes(bytes(content), tmp_path)
    assert [(s.key, s.status) for s in samples] == [
        ("a", Status.OK),
        ("b", Status.TRUNCATED),
        ("c", Status.TRUNCATED),
    ]
    assert end.damage.startswith(f"byte {whole[2].offset}:")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html><body>404 not found</body></html>" * 20, "DOCTYPE"),
        (b"\x1f\x8b\x08\0" + bytes(1000), "gzip; decompress it first (gzip -dc < IN.tar > OUT.tar)"),
        (b"\x28\xb5\x2f\xfd" + bytes(1000), "zstd; decompress it first (zstd -dc"),
        (b"", "empty"),
        (b"short", "short"),
    ],
    ids=["html", "gzip", "zstd", "empty", "short"],
)
def test_a_file_that_is_not_a_tar_is_an_error(tmp_path: Path, content: bytes, words: str) -> None:
    samples, end = read_bytes(content, tmp_path)
    assert samples == []
    assert words in end.error
    assert "shard.tar" in end.error


def test_a_missing_file_is_an_error_and_the_next_shard_is_read(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(pack(sample_members(["x"])))
    shards = [
        Shard(index=index, name=name, kind="tar", source=str(tmp_path / f"{name}.tar"))
        for index, name in enumerate("ab")
    ]
    items = list(read_shards(shards))
    assert [type(item).__name__ for item in items] == ["ShardEnd", "Sample", "ShardEnd"]
    assert isinstance(items[0], ShardEnd)
    assert "a.tar" in items[0].error


def test_a_tar_of_zero_blocks_is_an_empty_shard(tmp_path: Path) -> None:
    samples, end = read_bytes(bytes(10240), tmp_path)
    assert (samples, end.error, end.damage, end.warnings) == ([], "", "", ())


def test_a_zero_block_between_members_does_not_reach_the_output(tmp_path: Path) -> None:
    one, two = (pack([(name, JPEG)])[:1536] for name in ("a.jpg", "a.txt"))
    samples, _ = read_bytes(one + bytes(512) + two + bytes(1024), tmp_path)
    assert unpack(joined(samples)) == [("a.jpg", JPEG), ("a.txt", JPEG)]


def test_tars_joined_with_cat_are_read_to_the_first_end_marker_with_a_warning(tmp_path: Path) -> None:
    content = pack(sample_members(["a"]))
    samples, end = read_bytes(content + content, tmp_path)
    assert [s.key for s in samples] == ["a"]
    assert "behind the end marker" in end.warnings[0]


UNNAMED = {
    "codestream": b"\xff\x4f\xff\x51" + bytes(20),
    "bigtiff": b"II+\0" + bytes(20),
    "jpegxl": b"\0\0\0\x0cJXL \r\n\x87\n",
    **{brand: b"\0\0\0\x18ftyp" + brand.encode() + bytes(12) for brand in ("avif", "avis", "heic", "mif1")},
}
"""What begins as an image does, by kind."""


def test_the_image_is_chosen_by_extension_then_by_content(tmp_path: Path) -> None:
    members = [
        *(("a.webp", b"webp"), ("a.png", b"png"), ("a.jpg", b"jpg")),
        *(("b.gif", b"gif"), ("b.webp", b"webp")),
        *(("c.txt", b"text"), ("c.pict", b"what"), ("c.v2.image", PNG)),
        *(("d.seg.png", PNG), ("d.JPG", JPEG)),
        *(("e.j2c", b"by its name"), ("f.avifs", b"by its name")),
        *((f"{key}.other", magic) for key, magic in UNNAMED.items()),
    ]
    samples, _ = read_bytes(pack(members), tmp_path)
    images = [bytes(s.image or b"") for s in samples]
    assert images == [b"jpg", b"webp", PNG, JPEG, b"by its name", b"by its name", *UNNAMED.values()]


@pytest.mark.parametrize(
    ("suffix", "start"),
    [("psd", b"8BPS\0\1"), ("dds", b"DDS |\0\0\0"), ("qoi", b"qoif"), ("pcx", b"\n\5\1"), ("icns", b"icns")],
)
def test_a_known_format_that_is_not_decoded_is_named_as_such(
    suffix: str, start: bytes, tmp_path: Path
) -> None:
    ((sample,), _) = read_bytes(pack([(f"a.{suffix}", start + bytes(60))]), tmp_path)
    assert sample.image is not None
    header = probe(sample.image, Limits())
    assert (header.status, header.format) == (Status.UNSUPPORTED, suffix)


def test_samples_without_image_bytes_have_a_status(tmp_path: Path) -> None:
    members = [("a.txt", b"text"), ("a.json", b"{}"), ("b.jpg", b""), ("c.jpg", JPEG)]
    samples, _ = read_bytes(pack(members), tmp_path)
    assert [(s.key, s.status) for s in samples] == [
        ("a", Status.MISSING_IMAGE),
        ("b", Status.EMPTY),
        ("c", Status.OK),
    ]
    assert samples[0].image is None
    assert samples[1].image is None
    assert ".json, .txt" in samples[0].message
    assert bytes(samples[0].sidecar or b"") == b"{}"


def in_order(keys: list[str], order: str) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    """The members of `keys` as a tar holds them, and as their samples do."""
    members = sample_members(keys)
    if order == "shuffled":
        random.Random(5).shuffle(members)
    else:
        members.sort(key=lambda member: order.split().index(member[0].rpartition(".")[2]))
    places = {name.partition(".")[0]: place for place, (name, _) in reversed(list(enumerate(members)))}
    return members, sorted(members, key=lambda member: places[member[0].partition(".")[0]])


@pytest.mark.parametrize("padding", [0, 3 << 20], ids=["small", "read in parts"])
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("order", ["jpg json txt", "json txt jpg", "txt jpg json", "shuffled"])
def test_members_of_one_key_apart_are_joined(tmp_path: Path, order: str, format: int, padding: int) -> None:
    """As `tar cf x.tar *.jpg *.json` and tars in directory order have them."""
    keys = [f"{n:03}" + "l" * 120 * (n % 3 == 0) for n in range(150)]
    members, expected = in_order(keys, order)
    middle = ("zz.mid.jpg", JPEG + bytes(padding))
    members.insert(len(members) // 2, middle)
    samples, end = read_bytes(pack(members, format), tmp_path)
    assert (end.error, end.damage) == ("", "")
    found = unpack(joined(samples))
    found.remove(middle)
    assert found == expected
    assert [s.status for s in samples] == [Status.OK] * 151
    own = {s.key: (bytes(s.image or b""), bytes(s.sidecar or b"")) for s in samples if s.key != "zz"}
    contents = dict(members)
    assert own == {key: (contents[f"{key}.jpg"], contents[f"{key}.json"]) for key in keys}
    assert [w.partition(": ")[0] for w in end.warnings] == ["keys whose files lie apart in the tar, joined"]


def pack_links(members: list[tuple[str, bytes | str]], format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of files, and of hard links where the content is a name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.LNKTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


LONG = "l" * 95 + "/" + "m" * 90
LINKED: list[tuple[str, bytes | str]] = [
    ("a.jpg", JPEG + bytes(-len(JPEG) % 512)),
    ("a.json", "a.jpg"),
    ("b.jpg", "a.jpg"),
    ("b.txt", b"b"),
    (f"{LONG}.jpg", b"\xff\xd8\xff long"),
    (f"{LONG}2.txt", b"c"),
    (f"{LONG}2.jpg", f"{LONG}.jpg"),
    ("d.png", PNG),
    ("e.jpg", "b.jpg"),  # a link to a link
    ("e.txt", "b.txt"),
    ("a.webp", b"RIFF1234WEBP again"),
    ("f.jpg", "d.png"),
]


@pytest.mark.parametrize("padding", [0, 3 << 20], ids=["small", "read in parts"])
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("order", ["as packed", "sidecars apart"])
def test_hard_links_are_read_as_the_files_that_they_stand_for(
    tmp_path: Path, order: str, format: int, padding: int
) -> None:
    """GNU tar packs a file of several names, as in a folder without duplicates, once."""
    members = LINKED[:-2] + LINKED[-1:]
    if order == "sidecars apart":
        members.sort(key=lambda member: member[0].endswith("txt"))
    members.insert(2, ("zz.jpg", JPEG + bytes(padding)))
    content = pack_links(members, format)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    samples, end = read_bytes(content, tmp_path)
    assert (end.error, end.damage) == ("", "")
    assert {s.status for s in samples} == {Status.OK}
    found = unpack(joined(samples))
    assert dict(found) == expected
    assert len(found) == len(expected) == len(members)
    if order == "as packed":
        assert [name for name, _ in found] == [name for name, _ in members], "in the tar's order"
        assert end.warnings == ()
    for sample in samples:
        assert bytes(sample.image or b"") in [
            expected.get(f"{sample.key}.{suffix}") for suffix in ("jpg", "png")
        ]


def test_hard_links_that_lead_to_no_file_before_them_are_left_out_and_counted(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        *(("a.jpg", "a.jpg"), ("a.txt", b"a"), ("b.jpg", "c.jpg"), ("b.txt", b"b"), ("c.jpg", JPEG)),
        *(("d.jpg", "../c.jpg"), ("d.txt", b"d"), ("e.txt", b"e"), ("e.jpg", "c.jpg")),
    ]
    samples, end = read_bytes(pack_links(members), tmp_path)
    assert [(s.key, s.status) for s in samples] == [
        *((key, Status.MISSING_IMAGE) for key in "ab"),
        ("c", Status.OK),
        ("d", Status.MISSING_IMAGE),
        ("e", Status.OK),
    ]
    assert "d.jpg is a link to no file before it in the tar" in samples[3].message
    assert end.warnings[0].startswith("links left out (tar -h --hard-dereference packs their files): 3")


def test_a_link_takes_the_file_that_had_its_name_at_the_time(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        *(
            ("a.jpg", JPEG + b"1"),
            ("b.jpg", "a.jpg"),
            ("x.jpg", JPEG),
            ("a.jpg", JPEG + b"2"),
            ("c.jpg", "a.jpg"),
        ),
    ]
    samples, _ = read_bytes(pack_links(members), tmp_path)
    assert [(s.key, bytes(s.image or b"")[-1:]) for s in samples] == [
        *(("a", b"1"), ("b", b"1"), ("x", JPEG[-1:]), ("a", b"2"), ("c", b"2")),
    ]


def test_a_tidy_tar_is_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "_find", None)
    for members in (sample_members([str(n) for n in range(300)]), [(f"{n}.jpg", JPEG) for n in range(3000)]):
        samples, end = read_bytes(pack(members), tmp_path)
        assert (end.error, end.warnings) == ("", ())
        assert len(samples) in (300, 3000)


def test_sidecars_apart_that_cant_be_joined_fail_the_shard_with_advice(tmp_path: Path) -> None:
    apart = [("a.jpg", JPEG), ("b.jpg", JPEG), ("a.json", b"{}"), ("b.json", b"{}")]
    several = [("a.jpg", JPEG), ("b.jpg", JPEG), ("a.jpg", PNG), ("b.jpg", PNG), ("a.json", b"{}")]
    unseen = [*sample_members([f"{n:04}" for n in range(2000)])]
    unseen.insert(3000, ("0000.caption", b"of the first"))
    for members, key in ((several, "a"), (unseen, "0000")):
        _, end = read_bytes(pack(members), tmp_path)
        assert f"files of '{key}' lie apart" in end.error
        assert "--sort=name" in end.error
    (tmp_path / "a.tar").write_bytes(pack(apart))
    _, end = read_one(Shard(index=0, name="a", kind="tar", source=f"file://{tmp_path}/a.tar"))
    assert "--sort=name" in end.error


def test_samples_that_came_again_whole_are_samples_of_their_own_and_a_warning(tmp_path: Path) -> None:
    samples, end = read_bytes(pack(sample_members(["a", "b", "a"])), tmp_path)
    assert [(s.key, s.status) for s in samples] == [(key, Status.OK) for key in "aba"]
    assert end.warnings == ("keys that came again (both kept as samples of their own): 1 (first: 'a')",)


def test_the_message_names_an_image_that_is_a_link_or_sparse(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in [("a.jpg", tarfile.LNKTYPE), ("a.txt", tarfile.REGTYPE), ("b.bmp", b"S")]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x.jpg" if kind == tarfile.LNKTYPE else ""
            tar.addfile(info)
    samples, _ = read_bytes(file.getvalue(), tmp_path)
    assert [s.status for s in samples] == [Status.MISSING_IMAGE] * 2
    assert "a.jpg is a link to no file before it" in samples[0].message
    assert "b.bmp is a sparse entry" in samples[1].message


def test_a_member_that_comes_twice_stays_in_its_sample(tmp_path: Path) -> None:
    samples, end = read_bytes(pack([("a.jpg", JPEG), ("a.jpg", PNG)]), tmp_path)
    assert unpack(joined(samples)) == [("a.jpg", JPEG), ("a.jpg", PNG)]
    assert bytes(samples[0].image or b"") == JPEG
    assert "twice" in end.warnings[0]


def test_entries_that_are_no_files_and_names_without_a_key_are_counted(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        links = [("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)]
        for name, kind in [("d", tarfile.DIRTYPE), *links, ("p.jpg", tarfile.FIFOTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name in ("a.jpg", "README", "d/.hidden.jpg", "a.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(JPEG)
            tar.addfile(info, io.BytesIO(JPEG))
    samples, end = read_bytes(file.getvalue(), tmp_path)
    assert unpack(joined(samples)) == [("a.jpg", JPEG), ("a.txt", JPEG)]
    assert [s.key for s in samples] == ["a"]
    assert end.warnings == (
        "links left out (tar -h --hard-dereference packs their files): 2 (first: 'l.jpg', 'h.jpg')",
        "entries that are no files left out: 1 (first: 'p.jpg')",
        "files without a key (no name before the first dot) left out: 2 (first: 'README', 'd/.hidden.jpg')",
    )


def test_names_with_parent_folders_are_a_warning(tmp_path: Path) -> None:
    names = ["../../etc/evil.jpg", "/abs.jpg", "new\nline.jpg", "fine.jpg"]
    samples, end = read_bytes(pack([(name, JPEG) for name in names]), tmp_path)
    assert len(samples) == 4
    assert "3 (first" in end.warnings[0]


@pytest.mark.parametrize("chosen", [[0], [1], [2], [0, 2], [0, 1, 2]])
def test_a_pax_global_header_holds_for_every_kept_sample(tmp_path: Path, chosen: list[int]) -> None:
    first = pack(sample_members(["a"]), tarfile.PAX_FORMAT, {"comment": "one", "vendor.x": "1"})
    second = pack(sample_members(["b", "c"]), tarfile.PAX_FORMAT, {"comment": "two"})
    end = len(first.rstrip(b"\0")) + 511 & -512
    samples, _ = read_bytes(first[:end] + second, tmp_path)
    assert [s.key for s in samples] == ["a", "b", "c"]
    content = joined(samples[index] for index in chosen)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found = {}
        for info in tar:
            found[info.name] = (tar.pax_headers.get("comment"), tar.pax_headers.get("vendor.x"))
    expected = {}
    for index in chosen:
        for name, _ in sample_members(["abc"[index]]):
            expected[name] = ("one" if index == 0 else "two", "1")
    assert found == expected


def test_a_global_header_per_member_takes_constant_memory(tmp_path: Path) -> None:
    parts = [pack([(f"{n}.jpg", JPEG)], tarfile.PAX_FORMAT, {"comment": str(n)})[:3072] for n in range(50)]
    samples, end = read_bytes(b"".join(parts) + bytes(1024), tmp_path)
    assert end.damage == ""
    assert {sum(len(entry) for entry in sample.entries) for sample in samples} == {1024 + 1536}
    many = [pack([(f"{n}.jpg", b"")], tarfile.PAX_FORMAT, {f"key{n}": "1"})[:1536] for n in range(200)]
    _, end = read_bytes(b"".join(many) + bytes(1024), tmp_path)
    assert "global headers" in end.damage


def test_views_outlive_the_reader_and_do_not_copy(tmp_path: Path) -> None:
    content = pack([("a.jpg", JPEG + bytes(2 << 20))])
    samples, _ = read_bytes(content, tmp_path)
    (tmp_path / "shard.tar").unlink()
    assert isinstance(samples[0].image, memoryview)
    assert samples[0].image.readonly
    assert bytes(samples[0].image[: len(JPEG)]) == JPEG
    assert samples[0].image.obj is samples[0].entries[0].obj  # type: ignore[union-attr]


def test_a_url_is_read_through_fsspec(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(pack(sample_members(["x"])))
    samples, end = read_one(Shard(index=0, name="a", kind="tar", source=f"file://{tmp_path}/a.tar"))
    assert end.error == ""
    assert [s.key for s in samples] == ["x"]
    _, end = read_one(Shard(index=0, name="a", kind="tar", source="nosuchscheme://bucket/a.tar"))
    assert "nosuchscheme" in end.error


def test_images_and_sidecars_are_views_of_their_samples_entries(tmp_path: Path) -> None:
    """Also where the last member is empty and its data begins where the entries end."""
    members = [("a.jpg", JPEG), ("a.json", b""), ("b.jpg", JPEG), ("b.txt", b""), ("b.json", b"{}")]
    samples, _ = read_bytes(pack(members), tmp_path)
    assert [bytes(sample.sidecar or b"none") for sample in samples] == [b"none", b"{}"]
    assert samples[0].sidecar is not None
    assert all(bytes(sample.image or b"") == JPEG for sample in samples)
    assert all(isinstance(s.image, memoryview) and s.image.obj is s.entries[0].obj for s in samples)


def test_images_whose_names_share_the_part_before_the_first_dot_are_one_sample_and_a_warning(
    tmp_path: Path,
) -> None:
    members = [
        ("v1.0_1.jpg", JPEG),
        ("v1.0_2.jpg", PNG),
        ("v1.txt", b"text"),
        ("d.seg.png", PNG),
        ("d.jpg", JPEG),
    ]
    samples, end = read_bytes(pack(members), tmp_path)
    assert [(s.key, bytes(s.image or b"")) for s in samples] == [("v1", JPEG), ("d", JPEG)]
    assert end.warnings == ("keys (up to a name's first dot) of several images, one scored: 1 (first: 'v1')",)


def test_a_sample_of_many_members_takes_time_in_proportion(tmp_path: Path) -> None:
    """As do photos named `v1.0_000001.jpg`, which all have the key `v1`."""
    content = b"".join(tar_header(f"v1.0_{index:06d}.txt", 0) for index in range(20_000)) + bytes(1024)
    start = time.perf_counter()
    samples, _ = read_bytes(content, tmp_path)
    assert [s.status for s in samples] == [Status.MISSING_IMAGE]
    assert time.perf_counter() - start < 3
