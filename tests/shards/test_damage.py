"""Tars damaged in the middle: every readable sample is read, and no incomplete one counts as ok."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from dali_aesthetic.shards import members as members_module
from dali_aesthetic.shards import tar as tar_module
from dali_aesthetic.shards.folder import tar_header
from dali_aesthetic.shards.opened import ReadLimits
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.shards.scan import next_header, scan_tar
from dali_aesthetic.types import Sample, Shard, ShardEnd, Status
from tests.shards.tar_factory import PNG, joined, pack, read_bytes, sample_members, unpack
from tests.shards.test_tar import pack_links

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def smash(content: bytes, offset: int, num_bytes: int = 100) -> bytes:
    damaged = bytearray(content)
    damaged[offset : offset + num_bytes] = b"\xa5" * num_bytes
    return bytes(damaged)


@pytest.mark.parametrize("format", FORMATS)
def test_every_damaged_header_costs_its_neighbours_at_most(tmp_path: Path, format: int) -> None:
    keys = [f"{i:03d}" for i in range(8)]
    content = pack(sample_members(keys), format)
    whole, _ = read_bytes(content, tmp_path)
    for member in list(scan_tar(content))[1:]:
        key = member.name.partition(".")[0]
        samples, end = read_bytes(smash(content, member.header_offset), tmp_path)
        good = [sample.key for sample in samples if sample.status is Status.OK]
        assert set(keys) - set(good) <= {f"{int(key) + step:03d}" for step in (-1, 0, 1)}
        assert f"byte {member.header_offset}: " in end.damage
        intact = [sample for sample in whole if sample.key in good]
        assert joined(s for s in samples if s.status is Status.OK) == joined(intact)


def test_the_first_header_may_be_the_damaged_one(tmp_path: Path) -> None:
    samples, end = read_bytes(smash(pack(sample_members("abc")), 0), tmp_path)
    assert end.error == ""
    assert [(s.key, s.status) for s in samples] == [
        ("a", Status.TRUNCATED), ("b", Status.OK), ("c", Status.OK)
    ]  # fmt: skip


def test_a_sample_damaged_inside_stays_one_row(tmp_path: Path) -> None:
    content = pack(sample_members("abc"))
    inside = next(m for m in scan_tar(content) if m.name == "b.json")
    samples, _ = read_bytes(smash(content, inside.header_offset), tmp_path)
    assert [(s.key, s.status) for s in samples] == [
        ("a", Status.OK), ("b", Status.TRUNCATED), ("c", Status.OK)
    ]  # fmt: skip


def test_many_damages_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    content = pack(sample_members([f"{i:03d}" for i in range(60)]))
    for member in list(scan_tar(content))[6::30]:
        content = smash(content, member.header_offset)
    samples, end = read_bytes(content, tmp_path)
    assert end.damage.count("went on at byte") == 3
    assert end.damage.endswith("and 3 more")
    assert sum(sample.status is Status.OK for sample in samples) >= 48


def test_damaged_image_data_is_left_to_the_decoder(tmp_path: Path) -> None:
    content = pack(sample_members("abc"))
    second = next(m for m in scan_tar(content) if m.name == "b.jpg")
    samples, end = read_bytes(smash(content, second.data_offset), tmp_path)
    assert end.damage == ""
    assert [s.status for s in samples] == [Status.OK] * 3


def test_global_pax_records_apply_after_the_damage(tmp_path: Path) -> None:
    content = pack(sample_members("abcd"), tarfile.PAX_FORMAT, {"comment": "for all"})
    second = next(m for m in scan_tar(content) if m.name == "b.jpg")
    samples, _ = read_bytes(smash(content, second.header_offset), tmp_path)
    assert samples[-1].status is Status.OK
    assert b"for all" in bytes(samples[-1].entries[0])


def test_a_zeroed_region_is_reported(tmp_path: Path) -> None:
    members = sample_members([f"{i:03d}" for i in range(40)])
    content = bytearray(pack(members))
    content[20_480 : 20_480 + 30 * 512] = bytes(30 * 512)
    samples, end = read_bytes(bytes(content), tmp_path)
    assert 0 < len(samples) < 40
    assert end.damage or any("behind the end marker" in warning for warning in end.warnings)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_long_name_is_applied_to_its_own_member_only(tmp_path: Path, format: int) -> None:
    """Where the header behind it is zeroed, and its member has no bytes, the next one's header follows."""
    content = bytearray(pack([("a" * 120 + ".jpg", b""), ("b.jpg", PNG), ("c.jpg", PNG)], format))
    content[1024:1536] = bytes(512)
    samples, end = read_bytes(bytes(content), tmp_path)
    assert [(s.key, s.status) for s in samples] == [("b", Status.TRUNCATED), ("c", Status.OK)]
    assert end.damage.startswith("byte 1024: ")


@pytest.mark.parametrize("key", ["ü/1", "x" * 60 + "/v1." + "y" * 40 + "/1"])
def test_a_sample_whose_long_name_was_lost_is_truncated(tmp_path: Path, key: str) -> None:
    """Its header's own name gives another key, with which the damage seemed to be over."""
    members = [("0.jpg", PNG), (f"{key}.txt", b"text"), (f"{key}.jpg", PNG), ("2.jpg", PNG)]
    content = pack(members, tarfile.PAX_FORMAT)
    second = next(m for m in scan_tar(content) if m.name == f"{key}.txt")
    samples, _ = read_bytes(smash(content, second.header_offset), tmp_path)
    assert [s.key for s in samples if s.status is Status.OK] == ["2"]


@pytest.mark.parametrize("num_zeros", [1024, 10_240, 1 << 20, (1 << 20) + 512])
def test_more_zeros_at_the_end_than_a_writer_pads_are_reported(tmp_path: Path, num_zeros: int) -> None:
    """Downloads that make their file in its full size first leave one when they stop."""
    content = pack(sample_members("ab")).rstrip(b"\0")
    end = len(content) + 511 & -512
    samples, found = read_bytes(content + bytes(end - len(content) + num_zeros), tmp_path)
    assert [s.status for s in samples] == [Status.OK] * 2
    expected = ["zeros behind the end marker"] if num_zeros > 1 << 20 else []
    assert [warning.partition(",")[0] for warning in found.warnings] == expected


def test_the_search_finds_real_headers_only() -> None:
    tar = pack([("a.jpg", PNG)])
    assert next_header(tar, 0) == 0
    assert next_header(tar, 512) == -1
    assert next_header(b"ustar" * 10_000, 0) == -1
    assert next_header(bytes(512 * 3) + tar, 512) == 512 * 3
    assert next_header(bytes((1 << 20) * 2 - 512) + tar, 0) == (1 << 20) * 2 - 512
    moved = bytes(100) + tar
    assert next_header(moved + bytes(-len(moved) % 512), 0) == -1, "off the grid of blocks"


def read_limited(content: bytes, folder: Path, limits: ReadLimits) -> tuple[list[Sample], ShardEnd]:
    (folder / "s.tar").write_bytes(content)
    shard = Shard(index=0, name="s", kind="tar", source=str(folder / "s.tar"))
    *samples, end = read_shards([shard], limits)
    assert isinstance(end, ShardEnd)
    return [sample for sample in samples if isinstance(sample, Sample)], end


def test_a_member_above_its_limit_is_too_large_and_its_bytes_stay_where_they_are(tmp_path: Path) -> None:
    content = pack([("a.jpg", PNG), ("b.jpg", PNG), ("b.mp4", bytes(5000)), ("c.jpg", PNG)])
    samples, end = read_limited(content, tmp_path, ReadLimits(max_member_bytes=4000))
    assert [s.status for s in samples] == [Status.OK, Status.TOO_LARGE, Status.OK]
    assert samples[1].entries == ()
    assert samples[1].message == "b.mp4 has 5,000 bytes, the limit is 4,000"
    assert end.damage == ""


def sizes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all reads from now on."""
    sizes, pread = list[int](), os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    return sizes


def test_only_the_first_bytes_of_an_unknown_member_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = sizes_read(monkeypatch)
    content = pack([("a.mp4", bytes(50_000)), ("a.txt", b"text"), ("b.jpg", PNG)])
    samples, _ = read_limited(content, tmp_path, ReadLimits(max_member_bytes=4000))
    assert [s.status for s in samples] == [Status.TOO_LARGE, Status.OK]
    assert max(read) < 50_000


def sparse_tar(path: Path, members: Iterable[tuple[str, int]]) -> None:
    """A tar of images and of large members that take no disk."""
    with path.open("wb") as file:
        for name, size in members:
            file.write(tar_header(name, size or len(PNG)) + (b"" if size else PNG))
            file.seek(size, os.SEEK_CUR)
            file.seek(-file.tell() % 512, os.SEEK_CUR)
        file.truncate(file.tell() + 1024)


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("apart", [False, True])
def test_members_that_are_too_large_together_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, apart: bool
) -> None:
    """Each is below the limit of a sample, and all are 8 GiB."""
    read = sizes_read(monkeypatch)
    members = [("a.jpg", 0), *((f"a.x{n}.bin", 512 << 20) for n in range(16))]
    if apart and not scheme:
        members.insert(9, ("c.jpg", 0))
    sparse_tar(tmp_path / "s.tar", [*members, ("b.jpg", 0)])
    shard = Shard(index=0, name="s", kind="tar", source=f"{scheme}{tmp_path}/s.tar")
    *samples, end = read_shards([shard])
    assert isinstance(end, ShardEnd)
    assert (end.error, end.damage) == ("", "")
    found = {s.key: (s.status, s.entries == (), s.message) for s in samples if isinstance(s, Sample)}
    why = "its members together have more than 1,073,741,824 bytes, the limit of a sample"
    assert found.pop("a") == (Status.TOO_LARGE, True, why)
    assert set(found.values()) == {(Status.OK, False, "")}
    assert max(read, default=0) <= 1 << 20


def test_a_sample_of_too_many_members_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pack([("a.jpg", PNG), *((f"a.{n}", b"") for n in range(300)), ("b.jpg", PNG)])
    for most, expected in ((200, Status.TOO_LARGE), (400, Status.OK)):
        monkeypatch.setattr(members_module, "_MOST_OF_SAMPLE", most)
        samples, _ = read_bytes(content, tmp_path)
        assert [s.status for s in samples] == [expected, Status.OK]
        assert samples[0].message == ("it has over 200 members" if most == 200 else "")


def test_links_count_as_the_files_that_they_stand_for(tmp_path: Path) -> None:
    content = pack_links(
        [("0.jpg", PNG + bytes(2 << 20)), *((f"a.{n}", "0.jpg") for n in range(9)), ("a.jpg", PNG)]
    )
    for limit, expected in ((4 << 20, Status.TOO_LARGE), (32 << 20, Status.OK)):
        samples, _ = read_limited(content, tmp_path, ReadLimits(max_member_bytes=limit))
        assert [s.status for s in samples] == [Status.OK, expected]


def test_too_many_samples_of_one_tar_fail_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_module, "_MOST_SAMPLES", 3)
    for keys, error in (("abc", ""), ("abcd", "it has over 3 samples; split it into smaller tars")):
        _, end = read_bytes(pack(sample_members(keys)), tmp_path)
        assert end.error.endswith(error)
        assert bool(end.error) is bool(error)


def test_files_of_a_folder_that_are_too_large_together_are_no_sample(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    for suffix in ("txt", "json"):
        (tmp_path / f"a.{suffix}").write_bytes(b" " * 3000)
    shard = Shard(index=0, name="f", kind="folder", source=str(tmp_path), files=("a.json", "a.png", "a.txt"))
    for limit, expected in ((4000, Status.TOO_LARGE), (8000, Status.OK)):
        sample, _ = read_shards([shard], ReadLimits(max_member_bytes=limit))
        assert isinstance(sample, Sample)
        assert sample.status is expected
        assert ("together have more than 4,000 bytes" in sample.message) is (limit == 4000)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_tar_above_its_limit_is_an_error(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "s.tar").write_bytes(pack(sample_members("abc")))
    shard = Shard(index=0, name="s", kind="tar", source=f"{scheme}{tmp_path}/s.tar")
    (end,) = read_shards([shard], ReadLimits(max_tar_bytes=5000))
    assert isinstance(end, ShardEnd)
    assert "5,000 bytes" in end.error


def test_a_file_above_the_member_limit_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").write_bytes(PNG * 10)
    shard = Shard(index=0, name="f", kind="folder", source=str(tmp_path), files=("a.png", "b.png"))
    first, second, _ = read_shards([shard], ReadLimits(max_member_bytes=4000))
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert (first.status, second.status) == (Status.OK, Status.TOO_LARGE)


def test_a_tar_that_grows_while_it_is_read_is_not_committed(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(pack(sample_members("abc")))
    items = read_shards([Shard(index=0, name="s", kind="tar", source=str(path))])
    next(items)
    with path.open("ab") as file:
        file.write(bytes(512))
    *_, end = items
    assert isinstance(end, ShardEnd)
    assert "changed its size" in end.error


def test_an_empty_image_of_a_folder_keeps_its_entries(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "a.txt").write_text("caption")
    shard = Shard(index=0, name="f", kind="folder", source=str(tmp_path), files=("a.png", "a.txt"))
    sample = next(read_shards([shard]))
    assert isinstance(sample, Sample)
    assert sample.status is Status.EMPTY
    assert unpack(joined([sample])) == [("a.png", b""), ("a.txt", b"caption")]
