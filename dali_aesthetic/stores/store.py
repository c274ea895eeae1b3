"""The interface of a store, its errors (one class for each way to react), and retries with back-off."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from dali_aesthetic.types import Buffer

T = TypeVar("T")
_SLICE_SECONDS = 0.1
_MESSAGE_CHARACTERS = 300
_S3_ERROR = re.compile(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", re.DOTALL)
_STATUS = re.compile(r".*Server returned non-2xx status code: ", re.DOTALL)
EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("http", "https"), "http"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
    "hf": "hf",
}
"""URL scheme -> the extra of this package that installs its client."""


class StoreError(OSError):
    """A request failed, also after retries. The text names the request and the object."""


class ObjectChanged(StoreError):
    """The object changed after it was opened. Bytes read from it must not be used."""


class NoRanges(StoreError):
    """The server sends whole objects only."""


class NoConditions(StoreError):
    """The store has no conditional writes."""


class StoreUnusable(ValueError):
    """A package or setting that a store needs is missing or invalid. The text names it."""


LASTING = (
    *(FileNotFoundError, FileExistsError, PermissionError, NotImplementedError),
    *(ObjectChanged, NoRanges, NoConditions, StoreUnusable, ImportError, TypeError),
)
"""Errors that are never retried."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """The size of an object in bytes and a tag that changes with its content ("" if unknown).

    `has_ranges` is False where the server sends only whole objects. `is_guarded` says that `read` itself
    detects a changed tag; otherwise the caller checks again after the last read.
    """

    size: int
    tag: str = ""
    has_ranges: bool = True
    is_guarded: bool = True


class Store(Protocol):
    """One bucket, container, dataset or server. A key is the path below it.

    Every call is one attempt. Raises FileNotFoundError, PermissionError, the errors above, and the client's
    own errors for transient failures.
    """

    name: str

    def info(self, key: str) -> ObjectInfo:
        """Size and tag of an object."""

    def read(self, key: str, start: int, end: int, tag: str = "") -> Buffer:
        """The bytes from `start` to `end`, all of them. Raises ObjectChanged for another tag than `tag`."""

    def read_all(self, key: str) -> Iterator[Buffer]:
        """The whole object in pieces."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Key and size of every object below the folder `prefix`, in one listing."""

    def put(self, key: str, content: Path | bytes) -> None:
        """Makes an object, whole or not at all, in place of what is there."""

    def create(self, key: str, content: bytes) -> None:
        """Makes an object. Raises FileExistsError where there is one, NoConditions without such writes."""

    def replace(self, key: str, content: bytes, tag: str) -> None:
        """Puts `content` in place of the version `tag`. Raises ObjectChanged where another one is there."""

    def delete(self, key: str) -> None:
        """Removes an object; no error where there is none."""


def missing_package(scheme: str, error: Exception) -> StoreUnusable:
    """The error for a scheme whose client can't be imported, with the package to install."""
    extra = EXTRAS.get(scheme)
    fix = f"pip install 'dali-aesthetic[{extra}]'" if extra else f"install the package of fsspec for {scheme}"
    return StoreUnusable(f"{scheme}:// needs a package that is missing ({error}): {fix}")


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
    """The first sentence of a client's error; of an S3 server's answer its code and message."""
    text = str(error).partition("\n\nDebug source")[0].strip() or repr(error)
    answer = _S3_ERROR.search(text)
    text = f"{answer[1]}: {answer[2]}" if answer else _STATUS.sub("", text).rstrip(": ")
    return " ".join(text.split())[:_MESSAGE_CHARACTERS]


def _sleep(seconds: float, stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not stopped():
        time.sleep(min(left, _SLICE_SECONDS))
