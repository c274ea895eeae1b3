"""Asking a store again: with growing pauses, up to a limit, and never for what will not get better."""

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
class Patience:
    """How often and how long. The pause before attempt n+1 is random between half and all of
    `first * 2**n` seconds, `most` seconds at the longest: many readers then don't come back as one."""

    attempts: int = 8
    first: float = 0.25
    most: float = 20.0

    def pause(self, attempt: int) -> float:
        """Seconds to wait behind the failed `attempt` (from 0)."""
        return min(self.most, self.first * 2.0**attempt) * random.uniform(0.5, 1.0)


PATIENCE = Patience()


def _go_on() -> bool:
    return False


def retried(
    call: Callable[[], T], what: str, stopped: Callable[[], bool] = _go_on, patience: Patience = PATIENCE
) -> T:
    """The result of `call`, repeated while it fails in a way that may pass.

    Raises what can't pass (`LASTING`) at once, and StoreError naming `what` after the last attempt, or where
    `stopped` says that nobody waits for it any more.
    """
    attempt = 0
    while True:
        try:
            return call()
        except LASTING:
            raise
        except Exception as error:  # each store's client raises errors of its own
            attempt += 1
            if attempt >= patience.attempts or stopped():
                times = "once" if attempt == 1 else f"{attempt} times"
                raise StoreError(f"{what} failed {times}, at last with: {brief(error)}") from error
        _sleep(patience.pause(attempt - 1), stopped)


def brief(error: Exception) -> str:
    """The first sentence of a client's error."""
    text = str(error).partition("\n\nDebug source")[0].strip() or repr(error)
    return " ".join(text.split())[:_SHOWN]


def _sleep(seconds: float, stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not stopped():
        time.sleep(min(left, _SLICE_SECONDS))
