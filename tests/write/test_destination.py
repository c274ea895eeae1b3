"""A sink at a URL uploads the files of a local output, whole ones only, and leaves no temporary folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from dali_aesthetic.layout import committed_names
from dali_aesthetic.stores import filesystem, store
from dali_aesthetic.stores.store import StoreUnusable
from dali_aesthetic.types import Shard
from dali_aesthetic.write.commit import destination
from dali_aesthetic.write.files import Owner
from dali_aesthetic.write.sink import ShardSink
from tests.write.scored import at_least_5, batches, make_tar, shard_of, tree

URL = "memory://sink/out"


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    (tmp_path / "in").mkdir()
    keys = [f"{letter}{score}" for letter in "abcdefgh" for score in (2, 8)]
    return [
        shard_of(make_tar(tmp_path / "in" / f"{name}.tar", keys), index) for index, name in enumerate("pqr")
    ]


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(store.BACK_OFF, "first", 0.001)
    yield
    fsspec.filesystem("memory").store.clear()


def objects() -> dict[str, bytes]:
    system = fsspec.filesystem("memory")
    return {name.removeprefix("/sink/out/"): system.cat(name) for name in system.find("/sink/out")}


def write(output: str, shards: list[Shard]) -> list[str]:
    with ShardSink(output, ["v2"], at_least_5, quarantine=True) as sink:
        reports = [report for batch in batches(shards, 7) for report in sink.write(batch)]
        return [report.name for report in reports + sink.flush()]


def test_the_objects_are_the_files_of_a_folder(tmp_path: Path, shards: list[Shard]) -> None:
    assert write(URL, shards) == write(str(tmp_path / "out"), shards) == ["p", "q", "r"]
    assert objects() == tree(tmp_path / "out")
    assert committed_names(URL) == {"p", "q", "r"}
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_failed_upload_is_retried(
    tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, tries = filesystem.FileSystemStore.put, Counter[str]()

    def put(self: Any, key: str, content: Any) -> None:
        tries[key] += 1  # by key: counted together, several uploaders could fail one of them every time
        if tries[key] < 3:
            raise ConnectionResetError("reset")
        original(self, key, content)

    monkeypatch.setattr(filesystem.FileSystemStore, "put", put)
    write(URL, shards)
    write(str(tmp_path / "out"), shards)
    assert objects() == tree(tmp_path / "out")
    assert len(tries) == len(objects())
    assert set(tries.values()) == {3}


def test_an_upload_that_keeps_failing_ends_the_run_without_stats(
    tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = filesystem.FileSystemStore.put

    def put(self: Any, key: str, content: Any) -> None:
        if key == "out/scores/q.parquet":
            raise PermissionError(13, "denied", key)
        original(self, key, content)

    monkeypatch.setattr(filesystem.FileSystemStore, "put", put)
    with pytest.raises(PermissionError, match=r"scores/q\.parquet"):
        write(URL, shards)
    assert "stats/q.json" not in objects()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_temporary_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = tmp_path / "tmp" / f"dali-aesthetic-{Owner(Owner.current().host, process.pid, 1)}-abc"
    alive = tmp_path / "tmp" / f"dali-aesthetic-{Owner.current()}-def"
    for folder in (dead, alive):
        (folder / "shards").mkdir(parents=True)
    place = destination(URL)
    assert sorted(os.listdir(tmp_path / "tmp")) == sorted([alive.name, place.root.name])
    place.close()


def test_an_unusable_store_is_an_error_at_once() -> None:
    with pytest.raises(StoreUnusable, match="nowhere://"):
        ShardSink("nowhere://x/out", ["v2"], at_least_5)
