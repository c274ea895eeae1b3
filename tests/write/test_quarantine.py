"""Shards with too many bad samples, and the quarantine of samples that could not be scored."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dali_aesthetic.shards import read_shards
from dali_aesthetic.types import Sample, ScoredBatch, ShardEnd, ShardReport, Status
from dali_aesthetic.write.commit import abandon, commit
from dali_aesthetic.write.sink import ShardSink
from dali_aesthetic.write.writers import ParquetWriter, TarWriter
from tests.conftest import read_members
from tests.write.scored import GOOD, at_least_5, make_tar, scored, shard_of, tree


def batches_with_bad(path: Path, num_bad: int, size: int = 16) -> Iterator[ScoredBatch]:
    """The samples of a tar, of which the first `num_bad` of every 10 can't be decoded."""
    *samples, end = read_shards([shard_of(path)])
    assert isinstance(end, ShardEnd)
    bad = GOOD._replace(status=Status.UNDECODABLE, message="no image")
    for start in range(0, len(samples), size):
        some = tuple(sample for sample in samples[start : start + size] if isinstance(sample, Sample))
        headers = tuple(bad if int(sample.key[-1]) < num_bad else GOOD for sample in some)
        last = start + size >= len(samples)
        yield scored(some, (end,) if last else (), [5.0] * len(some), headers=headers)


def write(
    output: Path, path: Path, num_bad: int, *, max_bad_fraction: float = 1.0, quarantine: bool = False
) -> ShardReport:
    guard = {"max_bad_fraction": max_bad_fraction, "quarantine": quarantine}
    with ShardSink(output, ["v2"], at_least_5, **guard) as sink:  # type: ignore[arg-type]
        (report,) = [r for batch in batches_with_bad(path, num_bad) for r in sink.write(batch) + sink.flush()]
    return report


def keys(count: int) -> list[str]:
    return [f"{i:04d}" for i in range(count)]


def test_a_shard_with_too_many_bad_samples_fails_and_writes_nothing(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "in.tar", keys(120))
    report = write(tmp_path / "out", path, 6, max_bad_fraction=0.5, quarantine=True)
    assert "72 of its 120 samples are bad (72 undecodable)" in report.error
    assert "--max-bad-fraction 0.5" in report.error
    assert tree(tmp_path / "out") == {}


@pytest.mark.parametrize(("count", "num_bad", "limit"), [(120, 5, 0.5), (99, 10, 0.5), (120, 10, 1.0)])
def test_up_to_the_limit_and_below_a_hundred_samples_it_is_committed(
    tmp_path: Path, count: int, num_bad: int, limit: float
) -> None:
    path = make_tar(tmp_path / "in.tar", keys(count))
    report = write(tmp_path / "out", path, num_bad, max_bad_fraction=limit)
    assert report.error == ""
    assert report.num_samples == count
    assert not (tmp_path / "out" / "quarantine").exists()


def test_quarantine_keeps_bad_samples_byte_for_byte_with_their_reason(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "in.tar", keys(40))
    report = write(tmp_path / "out", path, 2, quarantine=True)
    assert (report.num_quarantined, report.num_kept) == (8, 32)
    bad = {key for key in keys(40) if int(key[-1]) < 2}
    members = read_members(path)
    split = [[m for m in members if (m[0][:4] in bad) == is_bad] for is_bad in (True, False)]
    assert read_members(tmp_path / "out" / "quarantine" / "in.tar") == split[0]
    assert read_members(tmp_path / "out" / "shards" / "in.tar") == split[1]
    rows = pq.read_table(tmp_path / "out" / "scores" / "in.parquet").to_pylist()
    assert {row["key"] for row in rows if row["error_message"] == "no image"} == bad


def test_a_shard_without_bad_samples_has_no_quarantine(tmp_path: Path) -> None:
    report = write(tmp_path / "out", make_tar(tmp_path / "in.tar", keys(20)), 0, quarantine=True)
    assert report.num_quarantined == 0
    assert list((tmp_path / "out" / "quarantine").iterdir()) == []


def test_leaving_early_removes_both_tars(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "in.tar", keys(40))
    with ShardSink(tmp_path / "out", ["v2"], at_least_5, quarantine=True) as sink:
        sink.write(next(batches_with_bad(path, 5)))
        assert len(tree(tmp_path / "out")) == 2
    assert tree(tmp_path / "out") == {}


def test_one_score_more_or_less_does_not_unquarantine(tmp_path: Path) -> None:
    """A sample without a number is neither kept nor quarantined: its image is fine."""
    *samples, end = read_shards([shard_of(make_tar(tmp_path / "in.tar", keys(4)))])
    some = tuple(sample for sample in samples if isinstance(sample, Sample))
    assert isinstance(end, ShardEnd)
    with ShardSink(tmp_path / "out", ["v2"], at_least_5, quarantine=True) as sink:
        sink.write(scored(some, (end,), [np.nan, 9.0, 9.0, 9.0]))
        (report,) = sink.flush()
    assert (report.num_kept, report.num_quarantined) == (3, 0)


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, folder: str) -> Iterator[None]:
    """No file below `folder` can be written."""
    writev = os.writev

    def sync(descriptor: int) -> None:
        if f"/{folder}/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")

    def write(descriptor: int, buffers: list[memoryview]) -> int:
        sync(descriptor)
        return writev(descriptor, buffers)

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", write)
        patch.setattr(os, "fsync", sync)
        yield


@pytest.mark.parametrize("folder", ["quarantine", "shards", "scores"])
def test_a_write_that_fails_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    path = make_tar(tmp_path / "in.tar", keys(40))
    with (
        full_disk(monkeypatch, folder),
        pytest.raises(OSError, match="No space left") as error,
    ):
        write(tmp_path / "out", path, 5, quarantine=True)
    assert f"out/{folder}/" in str(error.value.filename)
    assert tree(tmp_path / "out") == {}


def test_parquet_that_cant_be_written_leaves_no_temporary_file_and_is_named(tmp_path: Path) -> None:
    """The last bytes are still in a buffer, which fails once more when it is closed."""
    schema = pa.schema([("image", pa.binary())])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    parts = [ParquetWriter(tmp_path / "a.parquet", schema), TarWriter(tmp_path / "b.tar")]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        parts[0].add(pa.table({"image": [os.urandom(900)]}, schema))
        with pytest.raises(OSError, match=f"File too large: .{tmp_path}/a.parquet"):
            commit(parts, tmp_path / "stats.json", lambda: pytest.fail("it is not whole"))
    finally:
        abandon(parts)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path) == {}


def test_a_shard_whose_files_cant_all_be_opened_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tar(tmp_path / "in.tar", keys(10))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "embeddings").write_text("a file in the place of a folder")
    guard = {"quarantine": True, "embeddings": True}
    batch = next(batches_with_bad(path, 5))
    with (
        ShardSink(tmp_path / "out", ["v2"], at_least_5, **guard) as sink,  # type: ignore[arg-type]
        pytest.raises(OSError, match="embeddings"),
    ):
        sink.write(batch)
    assert list(tree(tmp_path / "out")) == ["embeddings"]
