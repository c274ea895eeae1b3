"""Inputs, stores and Ray are reached, or a finding gives the reason and the fix without delay."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dali_aesthetic import reach
from dali_aesthetic.cli import app
from dali_aesthetic.reach import Finding, Verdict
from dali_aesthetic.stores.store import BACK_OFF
from tests.stores.fixtures import bucket, s3_server
from tests.stores.s3 import Bucket
from tests.stores.servers import Faults, proxy, serving, web

__all__ = ["bucket", "s3_server"]


def one(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_a_local_input_is_counted_or_missed(shards_dir: Path, tmp_path: Path) -> None:
    found = one(reach.reach_input(str(shards_dir)))
    assert found.verdict is Verdict.OK
    assert "tar shards" in found.detail
    missing = one(reach.reach_input(str(tmp_path / "none.tar")))
    assert missing.verdict is Verdict.FAIL
    assert "none.tar" in missing.detail


def test_a_local_input_that_is_listed_but_not_readable_fails(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").symlink_to(tmp_path / "moved-away")
    found = one(reach.reach_input(str(tmp_path)))
    assert (found.verdict, "00000.tar" in found.detail) == (Verdict.FAIL, True)


@pytest.mark.parametrize("pattern", ["in", "in/a.tar", "in/*.tar", "in/{a..c}.tar"])
def test_an_input_in_a_bucket_is_read(bucket: Bucket, pattern: str) -> None:
    for name in "abc":
        bucket.put(f"in/{name}.tar", b"x" * 700)
    found = one(reach.reach_input(f"{bucket.url}/{pattern}"))
    assert found.verdict is Verdict.OK, found.detail
    assert "in/a.tar: 700 bytes, 512 read" in found.detail


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_a_server_that_fails_is_asked_once(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(BACK_OFF, "first", 1.0)
    faults = Faults(every={1: fault})
    with proxy(bucket.endpoint, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        for ask in (reach.reach_input, reach.reach_output):
            found = one(ask(f"{bucket.url}/d"))
            assert found.verdict is Verdict.FAIL
            assert ("SlowDown: Reduce" if fault == "503" else "no answer from http://127") in found.detail
            assert "Debug" not in found.detail
    assert len(faults.log) == 2


def test_a_shard_of_the_bucket_is_read_and_no_other_object(bucket: Bucket) -> None:
    for name in ("a.json", "b.tar", "c.tar", "d.parquet"):
        bucket.put(f"in/{name}", b"x" * 700)
    bucket.put("list.txt", f"{bucket.url}/in/c.tar\n".encode())
    read = {"in": "b.tar", "in/": "b.tar", "in/c*": "c.tar", "in/*.parquet": "d.parquet"}
    for place, name in read.items():
        assert f"in/{name}: 700 bytes" in one(reach.reach_input(f"{bucket.url}/{place}")).detail
    listed = one(reach.reach_input(f"@{bucket.url}/list.txt"))
    assert (listed.verdict, "1 tar shard; readable (in/c.tar" in listed.detail) == (Verdict.OK, True)
    for place in ("in/x*.tar", "in/a*", "list.txt"):
        assert one(reach.reach_input(f"{bucket.url}/{place}")).verdict is Verdict.FAIL


def test_a_folder_of_parquet_in_a_bucket_is_read(bucket: Bucket) -> None:
    for name in ("README.md", "a.parquet", "b.parquet"):
        bucket.put(f"p/{name}", b"x" * 700)
    found = one(reach.reach_input(f"{bucket.url}/p/"))
    assert (found.verdict, "p/a.parquet: 700 bytes" in found.detail) == (Verdict.OK, True)


def test_embeddings_and_lists_of_parquet_are_counted(tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy", "c.parquet"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.txt").write_text(f"# one\n{tmp_path}/c.parquet\n")
    found = one(reach.reach_input(f"{tmp_path}/*.npy"))
    assert (found.verdict, "2 .npy files of embeddings" in found.detail) == (Verdict.OK, True)
    found = one(reach.reach_input(f"@{tmp_path}/list.txt"))
    assert (found.verdict, "1 parquet shard" in found.detail) == (Verdict.OK, True)


@pytest.mark.parametrize("place", ["in", "in/none.tar", "in/*.tar"])
def test_an_input_that_is_not_in_the_bucket_fails(bucket: Bucket, place: str) -> None:
    found = one(reach.reach_input(f"{bucket.url}/{place}"))
    assert found.verdict is Verdict.FAIL
    assert "credentials" in found.fix


@pytest.mark.parametrize("place", ["d", "d/", "d/a.tar", "d/*.tar", "d/{a..b}.tar"])
def test_an_input_on_a_web_server_is_read(place: str) -> None:
    page = b'<a href="?C=N">Name</a> <a href="about.html">about</a> <a href="a.tar">a</a>'
    tar = b"x" * 700
    with web({"/d": page, "/d/": page, "/d/about.html": b"x", "/d/a.tar": tar}) as url:
        found = one(reach.reach_input(f"{url}/{place}"))
    assert (found.verdict, found.fix) == (Verdict.OK, "")
    assert "d/a.tar: 700 bytes, 512 read" in found.detail


@pytest.mark.parametrize("place", ["d", "d/", "d/a.tar", "d/*.tar"])
def test_a_web_server_that_sends_only_whole_files_is_a_warning(tmp_path: Path, place: str) -> None:
    class Handler(SimpleHTTPRequestHandler):
        """Of the standard library: it knows no Range."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, directory=os.fspath(tmp_path), **options)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Silent."""

    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.tar").write_bytes(b"x" * 700)
    with serving(Handler) as url:
        found = one(reach.reach_input(f"{url}/{place}"))
        missing = one(reach.reach_input(f"{url}/none"))
    assert found.verdict is Verdict.WARN, found.detail
    assert "d/a.tar: 700 bytes" in found.detail
    assert "memory" in found.fix
    assert missing.verdict is Verdict.FAIL


def test_an_output_in_a_bucket_is_tried_and_left_as_it_was(bucket: Bucket) -> None:
    assert one(reach.reach_output(f"{bucket.url}/kept")).verdict is Verdict.OK
    assert bucket.keys() == []
    missing = one(reach.reach_output("s3://no-such-bucket-here/kept"))
    assert missing.verdict is Verdict.FAIL


def test_an_unknown_store_fails_with_its_name() -> None:
    found = one(reach.reach_output("nosuch://place/kept"))
    assert found.verdict is Verdict.FAIL
    assert "nosuch" in found.detail


def test_ray_answers_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reach.metadata, "version", lambda name: "2.99")
    monkeypatch.setattr(reach, "_RAY_CLUSTER", tmp_path / "none")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "starts one on this machine" in one(reach.reach_ray()).detail
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (tmp_path / "cluster").write_text(f"127.0.0.1:{port}")
        monkeypatch.setattr(reach, "_RAY_CLUSTER", tmp_path / "cluster")
        assert f"the cluster at 127.0.0.1:{port} answers" in one(reach.reach_ray()).detail
        monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{port}")
        assert one(reach.reach_ray()).verdict is Verdict.OK
    start = time.monotonic()
    silent = one(reach.reach_ray())
    assert (silent.verdict, time.monotonic() - start < 10) == (Verdict.FAIL, True)
    assert "RAY_ADDRESS" in silent.fix


def test_auto_and_local_are_addresses_of_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reach.metadata, "version", lambda name: "2.99")
    monkeypatch.setattr(reach, "_RAY_CLUSTER", tmp_path / "none")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    found = one(reach.reach_ray())
    assert (found.verdict, "no cluster runs here" in found.detail) == (Verdict.FAIL, True)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    found = one(reach.reach_ray())
    assert (found.verdict, "starts one on this machine" in found.detail) == (Verdict.OK, True)


def test_without_ray_the_fix_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise reach.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(reach.metadata, "version", missing)
    found = one(reach.reach_ray())
    assert (found.verdict, found.fix) == (Verdict.FAIL, "in the clone, pip install '.[ray]'")


@pytest.mark.slow
def test_the_command_asks_for_what_is_given(bucket: Bucket) -> None:
    bucket.put("in/a.tar", b"x" * 700)
    tiny = ["--encoder", "ViT-B-32", "--weights", "random:1", "--head", "random:1", "--device", "cpu"]
    given = ["--input", f"{bucket.url}/in", "--output", f"{bucket.url}/kept", "--engine", "ray"]
    done = CliRunner().invoke(app, ["doctor", *tiny, *given, "--json"])
    by_check = {line["check"]: line for line in json.loads(done.stdout)}
    assert by_check["input"]["verdict"] == by_check["output"]["verdict"] == "ok"
    assert {"ray", "quack", "jpeg engine"} & set(by_check) >= {"ray", "quack"}
    failed = [line for line in by_check.values() if line["verdict"] == "fail"]
    assert done.exit_code == (1 if failed else 0)
