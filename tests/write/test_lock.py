"""The lease of an output at a URL: one run at a time, and it expires."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fsspec
import pytest

from dali_aesthetic.stores import open as open_
from dali_aesthetic.stores.open import store_of
from dali_aesthetic.stores.store import BACK_OFF
from dali_aesthetic.write import lock
from dali_aesthetic.write.files import Owner, output_path
from dali_aesthetic.write.lock import OutputBusy, claim
from tests.stores.fixtures import bucket, s3_server
from tests.stores.s3 import Bucket
from tests.stores.servers import Faults, proxy

__all__ = ["bucket", "s3_server"]


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.8)
    monkeypatch.setattr(lock, "_POLL_SECONDS", 0.1)


@pytest.fixture(params=["s3", "memory"])
def output(request: pytest.FixtureRequest, bucket: Bucket) -> Iterator[str]:
    """In a store with conditional writes, and in one without."""
    yield f"{bucket.url}/out" if request.param == "s3" else "memory://locks/out"
    fsspec.filesystem("memory").store.clear()


def put_lease(output: str, owner: Owner) -> None:
    content = json.dumps({"owner": str(owner), "run": "another", "renewed": 1}).encode()
    store, key = store_of(f"{output}/.lock")
    store.put(key, content)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_run_is_refused_and_a_third_comes_after_the_first(output: str) -> None:
    with claim(output):
        with pytest.raises(OutputBusy, match=r"is being written by process \d+ on "), claim(output):
            pass
        time.sleep(0.4)  # renewed meanwhile
        with pytest.raises(OutputBusy), claim(output):
            pass
    with claim(output):
        pass


def test_the_lease_of_a_dead_process_of_this_host_is_taken_over_at_once(output: str) -> None:
    put_lease(output, Owner(Owner.current().host, dead_process(), 1))
    begun = time.monotonic()
    with claim(output):
        assert time.monotonic() - begun < 0.7


def test_a_lease_without_heartbeat_expires(output: str) -> None:
    put_lease(output, Owner("elsewhere.1", 1, 1))
    begun = time.monotonic()
    with claim(output):
        assert time.monotonic() - begun >= 0.8


def test_a_lease_with_a_heartbeat_is_not_taken_over(output: str) -> None:
    owner = Owner("elsewhere.1", 1, 1)
    put_lease(output, owner)
    store, key = store_of(f"{output}/.lock")
    content = json.dumps({"owner": str(owner), "run": "another", "renewed": 2}).encode()
    renewal = threading.Timer(0.3, lambda: store.put(key, content))
    renewal.start()
    with pytest.raises(OutputBusy, match="process 1 on elsewhere"), claim(output):
        pass
    renewal.join()


def test_of_many_runs_that_start_together_one_gets_the_lease(bucket: Bucket) -> None:
    """In a store with conditional writes."""
    output, outcomes = f"{bucket.url}/out", []
    gate, done = threading.Barrier(6), threading.Event()

    def begin() -> None:
        gate.wait()
        try:
            with claim(output):
                outcomes.append("held")
                done.wait(10)
        except OutputBusy:
            outcomes.append("refused")

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 6:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held"] + ["refused"] * 5
    assert bucket.keys() == []


def test_a_lease_that_another_run_took_over_is_left_to_it(bucket: Bucket) -> None:
    output = f"{bucket.url}/out"
    with claim(output):
        put_lease(output, Owner("elsewhere.1", 1, 1))
        time.sleep(0.5)  # heartbeats that must not take it back
    assert json.loads(bucket.get("out/.lock"))["run"] == "another"


def is_refused(output: str, job: str = "") -> str:
    """The message, or "" where the lease was taken."""
    try:
        with claim(output, job=job):
            return ""
    except OutputBusy as error:
        return str(error)


def test_a_job_holds_the_lock_while_any_of_its_processes_runs(output: str) -> None:
    with ExitStack() as second:
        with claim(output, job="Slurm job 7"):
            second.enter_context(claim(output, job="Slurm job 7"))
            time.sleep(0.4)
            assert "is being written by Slurm job 7" in is_refused(output)
            assert "is being written by Slurm job 7" in is_refused(output, "Slurm job 8")
        time.sleep(0.4)  # the first has released it, the second makes it again
        assert "is being written by Slurm job 7" in is_refused(output)
        assert not is_refused(output, "Slurm job 7"), "a task that comes later"
    assert not is_refused(output)


def test_the_lease_of_a_job_outlives_the_process_of_it_that_died_here(output: str) -> None:
    """Others of its processes run elsewhere."""
    dead = Owner(Owner.current().host, dead_process(), 1)
    content = {"owner": str(dead), "run": "Slurm job 7", "job": "Slurm job 7", "renewed": 1}
    store, key = store_of(f"{output}/.lock")
    store.put(key, json.dumps(content).encode())
    begun = time.monotonic()
    with claim(output):
        assert time.monotonic() - begun >= 0.8


@contextmanager
def through(bucket: Bucket, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An output in the bucket whose server injects `faults`."""
    with proxy(bucket.endpoint, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        open_._store.cache_clear()
        yield f"{bucket.url}/out"


def beats(bucket: Bucket) -> int:
    return int(json.loads(bucket.get("out/.lock"))["renewed"])


def test_a_lock_lives_through_writes_whose_answers_are_lost(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one takes the lock; the others renew it."""
    with through(bucket, Faults("PUT .*lock", every={2: "lost"}, plan={1: "lost"}), monkeypatch) as output:
        with claim(output):
            begun = beats(bucket)
            time.sleep(1.0)
            assert beats(bucket) >= begun + 3
            with pytest.raises(OutputBusy), claim(output):
                pass
        assert bucket.keys() == []


def test_a_heartbeat_is_tried_while_the_lease_lasts_and_not_longer(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults("PUT .*lock")
    with through(bucket, faults, monkeypatch) as output:
        lease = lock._Lease(output)
        lease.acquire()
        faults.every = {1: "503"}
        monkeypatch.setattr(BACK_OFF, "first", 0.02)
        monkeypatch.setattr(BACK_OFF, "attempts", 2)
        recovery = threading.Timer(0.5, faults.every.clear)
        recovery.start()
        lease.renew()
        recovery.join()
        assert beats(bucket) == 2, "renewed by one heartbeat, once the store answered again"
        faults.every = {1: "503"}
        begun = time.monotonic()
        lease.renew()
        assert 0.6 < time.monotonic() - begun < 2.5
        faults.every = {}
        lease.release()
        assert bucket.keys() == []


def test_the_end_of_a_run_does_not_wait_for_a_store_that_is_down(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 60.0)
    faults = Faults("lock")
    with through(bucket, faults, monkeypatch) as output:
        with claim(output):
            faults.every = {1: "503"}
            monkeypatch.setattr(BACK_OFF, "first", 5.0)
            time.sleep(0.3)
            begun = time.monotonic()
        assert time.monotonic() - begun < 3


def test_a_lock_that_another_run_took_is_told_once(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    with claim(f"{bucket.url}/out"):
        put_lease(f"{bucket.url}/out", Owner("elsewhere.1", 1, 1))
        time.sleep(0.5)
    (told,) = [record.getMessage() for record in caplog.records if "took over" in record.message]
    assert f"{bucket.url}/out" in told


def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are synced from here on."""
    folders, fsync = list[str](), os.fsync

    def note(descriptor: int) -> None:
        folders.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return folders


def test_the_parent_of_each_new_folder_of_an_output_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = synced(monkeypatch)
    with claim(tmp_path / "a/b/out"):
        assert folders == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/b")]
        output_path(tmp_path / "a/b/out", "shards/part/00000.tar")
        assert folders[3:] == [str(tmp_path / "a/b/out"), str(tmp_path / "a/b/out/shards")]
        output_path(tmp_path / "a/b/out", "shards/part/00001.tar")
        assert len(folders) == 5
