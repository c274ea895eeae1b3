"""What is asked again, how often, after how long."""

from __future__ import annotations

import errno
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from dali_aesthetic.stores import objects
from dali_aesthetic.stores import open as open_
from dali_aesthetic.stores.access import Uploader, exists, list_files, read_bytes
from dali_aesthetic.stores.store import (
    BACK_OFF,
    BackOff,
    ObjectChanged,
    StoreError,
    StoreUnusable,
    retried,
    told,
)
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
def _counted(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, faults: Faults | None = None
) -> Iterator[Faults]:
    """`faults` with the requests to the bucket's server during the block, and what was done to them."""
    faults = faults or Faults()
    with proxy(bucket.endpoint, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        open_._store.cache_clear()
        yield faults


def _calls(url: str) -> dict[str, Callable[[], object]]:
    return {
        "list": lambda: list(list_files(url)),
        "read": lambda: read_bytes(f"{url}/a.tar"),
        "write": lambda: Uploader(url).put("a", b"x"),
        "write in parts": lambda: Uploader(url).put("a", bytes(11 << 20)),
    }


@pytest.mark.parametrize("call", ["list", "write"])
def test_a_missing_bucket_is_asked_for_once_and_named(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with (
        _counted(bucket, monkeypatch) as faults,
        pytest.raises(StoreUnusable, match=r"no bucket s3://no-such-bucket \(.* at http://127") as error,
    ):
        _calls("s3://no-such-bucket/d")[call]()
    assert "<" not in str(error.value)
    assert len(faults.log) == 1


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
        _counted(locked, monkeypatch) as faults,
        pytest.raises(PermissionError, match=r"denied \(credentials from AWS_ACCESS_KEY_ID") as error,
    ):
        _calls(f"{locked.url}/d")[call]()
    assert "<" not in str(error.value)
    assert call == "read" or "InvalidAccessKeyId: " in str(error.value)  # HEAD has no body
    assert len(faults.log) == 1


CALLS = ["list", "read", "write", "write in parts"]


@pytest.mark.parametrize("fault", ["503", "429", "reset"])
@pytest.mark.parametrize("call", CALLS)
def test_a_request_that_may_pass_is_made_so_often_and_no_oftener(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, call: str, fault: str
) -> None:
    monkeypatch.setattr(BACK_OFF, "attempts", 4)
    monkeypatch.setattr(objects, "PART_BYTES", 5 << 20)
    # An upload in parts begins with a POST, and its first part is asked for as often.
    methods = {"list": "GET", "read": "HEAD", "write": "PUT", "write in parts": "POST"}
    faults = Faults(methods[call], every={1: fault})
    with (
        _counted(bucket, monkeypatch, faults),
        pytest.raises(StoreError, match="failed 4 times") as error,
    ):
        _calls(f"{bucket.url}/d")[call]()
    assert len(faults.injected) == 4
    assert "<" not in str(error.value)
    cause = "no answer from http://127" if fault == "reset" else "SlowDown: Reduce your rate"
    assert (fault if call == "read" and fault != "reset" else cause) in str(error.value)  # HEAD has no body


def test_a_download_is_asked_for_so_often_and_no_oftener(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BACK_OFF, "attempts", 4)
    bucket.put("d/a.tar", bytes(1 << 20))
    for fault in ("503", "cut"):
        with _counted(bucket, monkeypatch, Faults("GET", every={1: fault})) as faults:
            with pytest.raises(StoreError, match=r"d/a\.tar failed 4 times"):
                read_bytes(f"{bucket.url}/d/a.tar")
            assert len(faults.injected) == 4


@pytest.mark.parametrize("call", CALLS)
def test_what_a_server_refuses_is_asked_for_once(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """400 stands for a wrong region, expired credentials and the like."""
    monkeypatch.setattr(objects, "PART_BYTES", 5 << 20)
    with (
        _counted(bucket, monkeypatch, Faults(every={1: "400"})) as faults,
        pytest.raises(StoreError, match=f"ing {bucket.url}/d.*: ") as error,
    ):
        _calls(f"{bucket.url}/d")[call]()
    assert len(faults.log) == 1
    assert "<" not in str(error.value)
    assert call == "read" or "SlowDown: Reduce your rate" in str(error.value)  # HEAD has no body


class Answered(Exception):
    """As clients of fsspec's file systems raise it."""

    def __init__(self, status: int, text: str = "no") -> None:
        super().__init__(text)
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (Answered(400), 1),
        (Answered(401), 1),
        (Answered(404), 1),
        (Answered(400, "<Code>RequestTimeout</Code>"), 4),
        (Answered(408), 4),
        (Answered(409), 4),
        (Answered(429), 4),
        (Answered(500), 4),
        (StoreError("x failed 8 times"), 1),
    ],
    ids=str,
)
def test_the_status_of_an_answer_decides(error: Exception, calls: int) -> None:
    flaky = Flaky(9, error)
    with pytest.raises(StoreError):
        retried(flaky, "reading x", back_off=QUICK)
    assert flaky.calls == calls


def test_a_missing_bucket_is_named_for_one_of_its_objects(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ask in (read_bytes, exists):
        with pytest.raises(StoreUnusable, match="no bucket s3://no-such-bucket"):
            ask("s3://no-such-bucket/a.tar")
    with _counted(bucket, monkeypatch) as faults:
        for name in "abc":
            with pytest.raises(FileNotFoundError, match="no such object"):
                read_bytes(f"{bucket.url}/{name}.tar")
    assert [method for method, *_ in faults.log] == ["HEAD", "GET", "HEAD", "HEAD"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/o/a.tar"), "/o/a.tar: No space.*free some space"),
        (
            PermissionError(13, "Permission denied", "/o"),
            r"^/o: Permission denied \(check its owner and mode\)$",
        ),
        (FileNotFoundError(2, "there is no such object", "s3://b/a"), "^s3://b/a: there is no such object$"),
        (FileExistsError(17, "File exists", "/o"), "^/o: File exists .a file is where a folder has to be.$"),
        (StoreError("listing s3://b failed once"), "^listing s3://b failed once$"),
        (RuntimeError(), "^RuntimeError$"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_is_told_by_file_reason_and_fix(error: Exception, words: str) -> None:
    assert re.search(words, told(error))


def test_a_file_that_is_known_is_not_named_again() -> None:
    assert told(FileNotFoundError(2, "gone", "s3://b/a"), "s3://b/a") == "gone"
    assert told(StoreError("s3://b/a failed once"), "s3://b/a") == "failed once"


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
