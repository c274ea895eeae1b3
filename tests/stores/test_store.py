"""What is asked again, how often, after how long."""

from __future__ import annotations

import time

import pytest

from dali_aesthetic.stores.store import BackOff, ObjectChanged, StoreError, retried


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
