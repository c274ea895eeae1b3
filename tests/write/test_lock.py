"""The lease of an output at a URL: one run at a time, and it expires."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import fsspec
import pytest

from dali_aesthetic.stores.open import store_of
from dali_aesthetic.write import lock
from dali_aesthetic.write.files import Owner
from dali_aesthetic.write.lock import OutputBusy, claim
from tests.stores.fixtures import bucket, s3_server
from tests.stores.s3 import Bucket

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
