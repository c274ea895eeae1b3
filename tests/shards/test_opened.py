"""Local files read in parts: the same bytes, and errors where a mapping would end the process."""

from __future__ import annotations

import errno
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dali_aesthetic.shards.opened import FileShrank, LocalFile, TooManyBytes, open_local
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.types import Sample, Shard, ShardEnd
from tests.shards.tar_factory import pack, sample_members

CONTENT = random.Random(0).randbytes(10_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (file := tmp_path / "a.bin").write_bytes(CONTENT)
    return file


@pytest.fixture
def file(path: Path) -> Iterator[LocalFile]:
    opened = LocalFile(str(path))
    yield opened
    opened.close()


@pytest.mark.parametrize("part_bytes", [1, 7, 512, 9_999, 10_000, 1 << 20])
def test_slices_equal_those_of_the_content(
    file: LocalFile, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr(LocalFile, "part_bytes", part_bytes)
    rng = random.Random(part_bytes)
    assert len(file) == len(CONTENT)
    for _ in range(2000):
        start, end = rng.randrange(10_500), rng.randrange(10_500)
        assert file[start:end] == CONTENT[start:end]
    assert file[:16] == CONTENT[:16]
    assert file[9_990:] == CONTENT[9_990:]


def test_going_forward_reads_every_byte_about_once(file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalFile, "part_bytes", 2000)
    read, pread = [], os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        read.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    for start in range(0, 10_000, 100):
        for inside in range(start, start + 100, 10):
            assert file[inside : inside + 10] == CONTENT[inside : inside + 10]
        assert file[start : start + 100] == CONTENT[start : start + 100]
    assert (len(read), sum(read)) == (5, 10_000)


def test_a_slice_before_the_current_part_keeps_the_part(
    file: LocalFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFile, "part_bytes", 2000)
    file[5000:5010]
    read, pread = [], os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        read.append((offset, size))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    assert file[4000:6500] == CONTENT[4000:6500]
    assert file[5020:5030] == CONTENT[5020:5030]
    assert read == [(4000, 2500)]


def test_views_outlive_the_file(path: Path) -> None:
    file = LocalFile(str(path))
    view = file[100:600]
    file[5000:5001]
    file.close()
    file.close()
    path.unlink()
    assert view == CONTENT[100:600]
    with pytest.raises(OSError, match="Bad file descriptor"):
        file[9_000:9_001]


def test_short_reads_are_continued(file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread
    monkeypatch.setattr(
        os, "pread", lambda descriptor, size, offset: pread(descriptor, min(size, 90), offset)
    )
    assert file[0:5000] == CONTENT[0:5000]


def test_a_file_that_shrank_is_an_error(path: Path, file: LocalFile) -> None:
    os.truncate(path, 4000)
    assert file[3000:3500] == CONTENT[3000:3500]
    with pytest.raises(FileShrank, match="it ends at byte 4,000, and had 10,000 when it was opened"):
        file[3900:4100]


def test_limits_and_missing_files_are_errors_that_leave_nothing_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TooManyBytes):
        open_local(str(path), 9_999)
    with pytest.raises(FileNotFoundError):
        open_local(f"{path}.gone", 1)
    monkeypatch.setattr(LocalFile, "part_bytes", 10_000)
    assert open_local(str(path), 10_000) == CONTENT, "small enough to be read whole"
    assert len(os.listdir("/proc/self/fd")) == before
    folder = LocalFile(str(path.parent))
    with pytest.raises(IsADirectoryError):
        folder[0:1]
    folder.close()


def tar(folder: Path) -> Shard:
    path = folder / "shard.tar"
    path.write_bytes(pack(sample_members(f"{index:03d}" for index in range(40)), tarfile.PAX_FORMAT))
    return Shard(index=0, name="shard", kind="tar", source=str(path))


def test_a_tar_that_shrinks_while_it_is_read_fails_alone(tmp_path: Path) -> None:
    shard = tar(tmp_path)
    items = read_shards([shard])
    first = next(items)
    os.truncate(shard.source, os.path.getsize(shard.source) // 2)
    *samples, end = items
    assert isinstance(first, Sample)
    assert samples
    assert isinstance(end, ShardEnd)
    assert "can't be read to its end: it ends at byte" in end.error


def test_a_disk_that_fails_in_the_middle_fails_the_shard_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, pread = tar(tmp_path), os.pread

    def broken(descriptor: int, size: int, offset: int) -> bytes:
        if offset > 20_000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", broken)
    *samples, end = read_shards([shard])
    assert samples
    assert isinstance(end, ShardEnd)
    assert "Input/output error" in end.error


def test_a_reader_that_stops_early_leaves_nothing_open(tmp_path: Path) -> None:
    shard = tar(tmp_path)
    before = os.listdir("/proc/self/fd")
    items = read_shards([shard])
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert os.listdir("/proc/self/fd") == before
