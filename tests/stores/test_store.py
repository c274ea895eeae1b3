"""What is asked again, how often, after how long."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dali_aesthetic.stores import open as open_
from dali_aesthetic.stores.access import Uploader, list_files, read_bytes
from dali_aesthetic.stores.store import BackOff, ObjectChanged, StoreError, retried
from tests.stores.s3 import Bucket
from tests.stores.servers import Faults, proxy


class Flaky:
    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "done"


QUICK = BackOff(attempts=4, first=0.001)


def test_what_may_pass_is_asked_again() -> None:
    flaky = Flaky(3, OSError("connection reset"))
    assert retried(flaky, "reading x", back_off=QUICK) == "done"
    assert flaky.calls == 4


def test_the_last_attempts_error_is_told_with_what_was_tried() -> None:
    flaky = Flaky(9, RuntimeError("503 SlowDown\n\nDebug source:\nlong"))
    with pytest.raises(StoreError, match=r"^reading x failed 4 times, at last with: 503 SlowDown$"):
        retried(flaky, "reading x", back_off=QUICK)
    assert flaky.calls == 4


@pytest.mark.parametrize("error", [FileNotFoundError(), PermissionError(), ObjectChanged("other")])
def test_what_does_not_pass_is_not_asked_again(error: Exception) -> None:
    flaky = Flaky(9, error)
    with pytest.raises(type(error)):
        retried(flaky, "reading x", back_off=QUICK)
    assert flaky.calls == 1


@contextmanager
def _counted(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str, str]]]:
    """The requests to the bucket's server during the block."""
    faults = Faults()
    with proxy(bucket.endpoint, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        open_._store.cache_clear()
        yield faults.log


def _calls(url: str) -> dict[str, Callable[[], object]]:
    return {
        "list": lambda: list(list_files(url)),
        "read": lambda: read_bytes(f"{url}/a.tar"),
        "write": lambda: Uploader(url).put("a", b"x"),
    }


@pytest.mark.parametrize("call", ["list", "write"])
def test_a_missing_bucket_is_asked_for_once_and_named(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with (
        _counted(bucket, monkeypatch) as requests,
        pytest.raises(FileNotFoundError, match=r"no such bucket \(.* at http://127") as error,
    ):
        _calls("s3://no-such-bucket/d")[call]()
    assert error.value.filename == "s3://no-such-bucket"
    assert "<" not in str(error.value)
    assert len(requests) == 1


@pytest.fixture
def locked(bucket: Bucket) -> Iterator[Bucket]:
    """The bucket of a server that knows no user, so it denies every request."""
    reset = f"{bucket.endpoint}/moto-api/reset-auth"
    urllib.request.urlopen(urllib.request.Request(reset, b"0", {"Content-Type": "text/plain"})).close()
    yield bucket
    urllib.request.urlopen(urllib.request.Request(reset, b"inf", {"Content-Type": "text/plain"})).close()


@pytest.mark.parametrize("call", ["list", "read", "write"])
def test_denied_access_is_asked_for_once_and_told_in_a_sentence(
    locked: Bucket, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with (
        _counted(locked, monkeypatch) as requests,
        pytest.raises(PermissionError, match=r"denied \(credentials from AWS_ACCESS_KEY_ID") as error,
    ):
        _calls(f"{locked.url}/d")[call]()
    assert "<" not in str(error.value)
    assert call == "read" or "InvalidAccessKeyId: " in str(error.value)  # HEAD has no body
    assert len(requests) == 1


def test_pauses_grow_up_to_their_limit() -> None:
    patience = BackOff(first=1.0, most=10.0)
    for attempt, most in enumerate((1, 2, 4, 8, 10, 10)):
        assert most / 2 <= patience.pause(attempt) <= most


def test_nobody_waits_for_what_was_stopped() -> None:
    begun = time.monotonic()
    flaky = Flaky(9, OSError("down"))
    with pytest.raises(StoreError):
        retried(flaky, "reading x", lambda: True, BackOff(first=30.0))
    assert time.monotonic() - begun < 5
    assert flaky.calls == 1
