"""Shards read from S3 and from web servers, undisturbed and with faults: the samples of the local file."""

from __future__ import annotations

import io
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dali_aesthetic.shards.opened import ReadLimits
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.stores import open, read_ahead, store
from dali_aesthetic.stores.read_ahead import ReadAhead
from dali_aesthetic.types import Sample, Shard, ShardEnd, Status
from tests.conftest import add_member
from tests.shards.test_tar import LINKED, pack_links
from tests.stores.s3 import Bucket
from tests.stores.servers import Faults, proxy, web

PART = 64 << 10


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small tar has many, and samples lie across their borders."""
    monkeypatch.setattr(read_ahead, "PART_BYTES", PART)
    monkeypatch.setattr(store.BACK_OFF, "first", 0.01)


@pytest.fixture(autouse=True)
def _fresh_stores() -> Iterator[None]:
    open._store.cache_clear()
    yield
    open._store.cache_clear()


def make_tar(
    num_samples: int = 40, seed: int = 0, format: int = tarfile.GNU_FORMAT, **options: object
) -> bytes:
    """Samples of 1 to 100 KB of noise with a caption."""
    rng, file = random.Random(seed), io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format, **options) as tar:  # type: ignore[call-overload]
        for index in range(num_samples):
            add_member(tar, f"{index:04d}.jpg", b"\xff\xd8\xff" + rng.randbytes(rng.randrange(1000, 100_000)))
            add_member(tar, f"{index:04d}.txt", b"text")
    return file.getvalue()


def tar_shard(source: str, index: int = 0) -> Shard:
    return Shard(index=index, name=f"{index:05d}", kind="tar", source=source)


def facts(item: Sample | ShardEnd) -> tuple[object, ...]:
    """All of an item that doesn't tell where it was read."""
    if isinstance(item, ShardEnd):
        return (item.damage, item.error, item.warnings)
    entries = b"".join(bytes(entry) for entry in item.entries)
    return (item.key, bytes(item.image or b""), entries, item.offset, item.status, item.message)


def read_facts(sources: list[str], limits: ReadLimits | None = None) -> list[tuple[object, ...]]:
    shards = [tar_shard(source, index) for index, source in enumerate(sources)]
    return [facts(item) for item in read_shards(shards, limits or ReadLimits())]


def local_facts(contents: list[bytes], folder: Path) -> list[tuple[object, ...]]:
    for index, content in enumerate(contents):
        (folder / f"{index}.tar").write_bytes(content)
    return read_facts([str(folder / f"{index}.tar") for index in range(len(contents))])


def test_samples_of_s3_are_those_of_the_local_file(bucket: Bucket, tmp_path: Path) -> None:
    contents = [make_tar(seed=seed) for seed in range(3)]
    for index, content in enumerate(contents):
        bucket.put(f"data/{index}.tar", content)
    got = read_facts([f"{bucket.url}/data/{index}.tar" for index in range(3)])
    assert got == local_facts(contents, tmp_path)


@pytest.mark.parametrize("budget", [1, 3 * PART, 100 * PART])
def test_any_budget_gives_the_same_samples(bucket: Bucket, tmp_path: Path, budget: int) -> None:
    content = make_tar()
    bucket.put("a.tar", content)
    got = read_facts([f"{bucket.url}/a.tar"], ReadLimits(read_ahead_bytes=budget))
    assert got == local_facts([content], tmp_path)


def test_hard_links_are_followed_as_locally(bucket: Bucket, tmp_path: Path) -> None:
    content = pack_links([("0.jpg", b"\xff\xd8\xff" + bytes(99_999)), *LINKED[:-2], ("z.jpg", "0.jpg")])
    bucket.put("a.tar", content)
    assert read_facts([f"{bucket.url}/a.tar"]) == local_facts([content], tmp_path)
    assert {fact[4] for fact in read_facts([f"{bucket.url}/a.tar"])[:-1]} == {Status.OK}


def test_damage_and_global_headers_are_read_as_locally(bucket: Bucket, tmp_path: Path) -> None:
    """Both look back at bytes that were released."""
    damaged = bytearray(make_tar(seed=1))
    damaged[len(damaged) // 2 : len(damaged) // 2 + 150_000] = bytes(150_000)
    with_global = make_tar(seed=2, format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 600})
    contents = [bytes(damaged), with_global, make_tar(seed=3)[:-30_000]]
    for index, content in enumerate(contents):
        bucket.put(f"{index}.tar", content)
    got = read_facts([f"{bucket.url}/{index}.tar" for index in range(3)])
    assert got == local_facts(contents, tmp_path)


def test_what_is_held_stays_within_the_budget(bucket: Bucket) -> None:
    budget = 6 * PART
    bucket.put("a.tar", make_tar(60))
    most = 0
    with ReadAhead(budget) as ahead:
        for _, opener in ahead.over([f"{bucket.url}/a.tar"] * 2, str):
            assert opener is not None
            file = opener()
            for at in range(0, len(file), 10_000):
                file.release(at)
                assert len(file[at : at + 512]) > 0
                most = max(most, ahead.held)
        assert ahead.held == 0
    assert PART < most <= budget


def test_the_next_object_is_downloaded_while_one_is_read(bucket: Bucket, s3_server: str) -> None:
    faults = Faults()
    for name in "abc":
        bucket.put(f"{name}.tar", make_tar(3))
    with proxy(s3_server, faults) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        open._store.cache_clear()
        samples = read_shards([tar_shard(f"{bucket.url}/{name}.tar") for name in "abc"])
        while not isinstance(next(samples), ShardEnd):
            pass
        while not any("b.tar" in path and method == "GET" for method, path, _ in faults.log):
            assert next(samples) is not None
        asked = [path for method, path, _ in faults.log if method == "GET"]
        assert any("b.tar" in path for path in asked)
        samples.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "fault", ["500", "503", "429", "reset", "cut"], ids=["500", "SlowDown", "429", "reset", "cut"]
)
def test_faults_of_a_server_change_nothing(
    bucket: Bucket, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    content = make_tar()
    bucket.put("a.tar", content)
    faults = Faults(pattern="a.tar", every={3: fault})
    with proxy(s3_server, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        open._store.cache_clear()
        got = read_facts([f"{bucket.url}/a.tar"])
    assert len(faults.injected) > 3
    assert got == local_facts([content], tmp_path)


def test_a_cut_body_goes_on_at_the_byte_where_it_stopped(
    bucket: Bucket, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "PART_BYTES", 8 << 20)
    content = make_tar(100)
    bucket.put("a.tar", content)
    faults = Faults(pattern="GET .*a.tar", plan={1: "cut"})
    with proxy(s3_server, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        open._store.cache_clear()
        got = read_facts([f"{bucket.url}/a.tar"])
    assert got[-1] == ("", "", ())
    ranges = [asked for method, _, asked in faults.log if method == "GET"]
    assert ranges == [f"bytes=0-{len(content) - 1}", f"bytes={len(content) // 2}-{len(content) - 1}"]


def test_a_slow_link_is_waited_for(
    bucket: Bucket, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_tar(12)
    bucket.put("a.tar", content)
    with proxy(s3_server, Faults(bytes_per_second=200_000)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        open._store.cache_clear()
        assert read_facts([f"{bucket.url}/a.tar"]) == local_facts([content], tmp_path)


def test_a_shard_that_stays_unreadable_fails_and_the_others_go_on(
    bucket: Bucket, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.BACK_OFF, "attempts", 2)
    for name in "abc":
        bucket.put(f"{name}.tar", make_tar(5))
    with proxy(s3_server, Faults(pattern="GET .*b.tar", every={1: "500"})) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        open._store.cache_clear()
        got = read_facts([f"{bucket.url}/{name}.tar" for name in ("a", "b", "gone", "c")])
    ends = [str(one[1]) for one in got if len(one) == 3]
    assert [bool(error) for error in ends] == [False, True, True, False]
    assert "failed 2 times" in ends[1]
    assert "no such object" in ends[2]


def test_an_object_that_changes_is_an_error_not_a_mix(bucket: Bucket) -> None:
    bucket.put("a.tar", make_tar(60, seed=1))
    items = read_shards([tar_shard(f"{bucket.url}/a.tar")], ReadLimits(read_ahead_bytes=2 * PART))
    assert isinstance(next(items), Sample)
    bucket.put("a.tar", make_tar(60, seed=2))
    *_, end = items
    assert isinstance(end, ShardEnd)
    assert "changed" in end.error


@pytest.mark.parametrize("ranges", [True, False], ids=["with Range", "without Range"])
@pytest.mark.parametrize("etag", [True, False], ids=["with ETag", "without ETag"])
def test_a_web_server_is_read_with_and_without_ranges(tmp_path: Path, ranges: bool, etag: bool) -> None:
    content, log = make_tar(), list[str]()
    with web({"/d/a b.tar": content, "/d/a%20b.tar": content}, ranges=ranges, etag=etag, log=log) as url:
        got = read_facts([f"{url}/d/a%20b.tar"])
    assert got == local_facts([content], tmp_path)
    assert sum("bytes=" in line for line in log) >= (10 if ranges else 1)


def test_a_whole_download_has_its_limit() -> None:
    with web({"/a.tar": make_tar(3)}, ranges=False) as url:
        ((_, error, _),) = read_facts([f"{url}/a.tar"], ReadLimits(max_download_bytes=6000))
    assert "6,000 that --memory-budget leaves" in str(error)


def test_a_file_system_of_fsspec_is_streamed_too(tmp_path: Path) -> None:
    import fsspec

    content = make_tar(seed=7)
    fsspec.filesystem("memory").pipe("/bucket/a.tar", content)
    assert read_facts(["memory://bucket/a.tar"]) == local_facts([content], tmp_path)
    items = read_shards([tar_shard("memory://bucket/a.tar")], ReadLimits(read_ahead_bytes=2 * PART))
    next(items)
    fsspec.filesystem("memory").pipe("/bucket/a.tar", make_tar(seed=8))
    *_, end = items
    assert isinstance(end, ShardEnd)
    assert end.error


def test_a_local_tar_that_shrinks_is_an_error_as_a_url_too(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar(60))
    items = read_shards([tar_shard(f"file://{path}")], ReadLimits(read_ahead_bytes=2 * PART))
    next(items)
    os.truncate(path, 10 * PART)
    *_, end = items
    assert isinstance(end, ShardEnd)
    assert "can't be read to its end" in end.error
