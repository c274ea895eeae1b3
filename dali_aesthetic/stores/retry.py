"""Retries with exponential back-off and jitter; permanent errors are raised at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dali_aesthetic.stores.store import LASTING, StoreError

T = TypeVar("T")
_SLICE_SECONDS = 0.1
_SHOWN = 300


@dataclass(slots=True)
class BackOff:
    """A back-off policy: the pause before attempt n+1 is a random 50 to 100% of `first * 2**n` seconds, at
    most `most`. The jitter keeps many readers from retrying at the same moment."""

    attempts: int = 8
    first: float = 0.25
    most: float = 20.0

    def pause(self, attempt: int) -> float:
        """Seconds to wait after the failed `attempt` (from 0)."""
        return min(self.most, self.first * 2.0**attempt) * random.uniform(0.5, 1.0)


BACK_OFF = BackOff()


def _never() -> bool:
    return False


def retried(
    call: Callable[[], T], what: str, stopped: Callable[[], bool] = _never, back_off: BackOff = BACK_OFF
) -> T:
    """The result of `call`, retried after transient errors.

    Raises permanent errors (`LASTING`) at once, and StoreError naming `what` after the last attempt or once
    `stopped()` is true.
    """
    attempt = 0
    while True:
        try:
            return call()
        except LASTING:
            raise
        except Exception as error:  # each store's client raises errors of its own
            attempt += 1
            if attempt >= back_off.attempts or stopped():
                times = "once" if attempt == 1 else f"{attempt} times"
                raise StoreError(f"{what} failed {times}, at last with: {brief(error)}") from error
        _sleep(back_off.pause(attempt - 1), stopped)


def brief(error: Exception) -> str:
    """The first sentence of a client's error."""
    text = str(error).partition("\n\nDebug source")[0].strip() or repr(error)
    return " ".join(text.split())[:_SHOWN]


def _sleep(seconds: float, stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not stopped():
        time.sleep(min(left, _SLICE_SECONDS))
