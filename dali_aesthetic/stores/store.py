"""The interface of a store, its errors (one class for each way to react), and retries with back-off.

A request is repeated by one layer only. Single requests are repeated by `retried`. What takes many (a
listing, an upload in parts) or goes on where it stopped (a download) is repeated by the client, request by
request; its last error is then a `StoreError`, which `retried` doesn't repeat. gcsfs (6 times) and adlfs (3
times) also repeat a single request, and have no switch.
"""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from dali_aesthetic.types import Buffer, ConfigError

T = TypeVar("T")
_SLICE_SECONDS = 0.1
_MESSAGE_CHARACTERS = 300
_S3_ERROR = re.compile(r"<Code>(.*?)</Code>(?:.*?<Message>(.*?)</Message>)?", re.DOTALL)
_STATUS = re.compile(r"status code: (\d{3})")
_SERVER = re.compile(r"Error performing \w+ (\w+://[^/\s]+)")
_CLIENTS_WORDS = re.compile(r".*(?: - |Server returned non-2xx status code: )", re.DOTALL)
_DEBUG = "\n\nDebug source"
_NO_ANSWER = re.compile(r'"(dns error)"|message: "([^"]+)"')
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


class UnreadableKey(StoreError):
    """The client can't name the object."""


class NoConditions(StoreError):
    """The store has no conditional writes."""


class StoreUnusable(ConfigError):
    """A package, a setting or the bucket that a store needs is missing or invalid. The text names it."""


LASTING = (
    *(FileNotFoundError, FileExistsError, PermissionError, NotImplementedError),
    *(StoreError, StoreUnusable, ImportError, TypeError),
)
"""Errors that are never retried."""
_PASSING_STATUSES = (408, 409, 425, 429)
_PASSING_CODES = ("RequestTimeout", "IncompleteBody")
"""Codes of S3 that come with status 400."""


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: the one place that decides it, for all clients' errors."""
    status = _status_of(error)
    return not isinstance(error, LASTING) and (
        not 300 <= status < 500
        or status in _PASSING_STATUSES
        or any(f"<Code>{code}<" in str(error) for code in _PASSING_CODES)
    )


def _status_of(error: Exception) -> int:
    """The HTTP status in a client's error, as each has it; 0 without one."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            if str(status := getattr(holder, name, "")).isdigit():
                return int(status)
    found = _STATUS.search(str(error))
    return int(found[1]) if found else 0


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

    Raises FileNotFoundError, PermissionError, the errors above, and the client's own errors for failures of a
    single attempt.
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
    fix = (
        f"in the clone, pip install '.[{extra}]'" if extra else f"install the package of fsspec for {scheme}"
    )
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

    Raises permanent errors (`LASTING`) at once, and StoreError naming `what` for others that can't pass,
    after the last attempt, or once `stopped()` is true.
    """
    attempt = 0
    while True:
        try:
            return call()
        except LASTING:
            raise
        except Exception as error:  # each store's client raises errors of its own
            attempt += 1
            if not may_pass(error):
                raise StoreError(f"{what}: {brief(error)}") from error
            if attempt >= back_off.attempts or stopped():
                raise gave_up(what, attempt, error) from error
        _sleep(back_off.pause(attempt - 1), stopped)


def gave_up(what: str, attempts: int, error: Exception) -> StoreError:
    """The error for a request that failed so often."""
    times = "once" if attempts == 1 else f"{attempts} times"
    return StoreError(f"{what} failed {times}, at last with: {brief(error)}")


def brief(error: BaseException) -> str:
    """The cause in a client's error: the code and message of a server's answer, or why there was none."""
    text, _, debug = str(error).partition(_DEBUG)
    text = text.strip() or repr(error)
    server, reason = _SERVER.search(text), _NO_ANSWER.search(debug)
    if answer := _S3_ERROR.search(text):
        text = ": ".join(filter(None, answer.groups()))
    elif server and "error sending request" in text:
        why = f" ({reason[1] or reason[2]})" if reason else ""
        text = f"no answer from {server[1]}{why}: check the address and the network"
    else:
        text = _CLIENTS_WORDS.sub("", text).partition("<")[0]  # no page of a server
    return " ".join(text.split()).rstrip(": ")[:_MESSAGE_CHARACTERS]


_FIXES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, then run the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "check its owner and mode"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file is where a folder has to be"),
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise `ulimit -n`",
}


def told(error: BaseException, known: str = "") -> str:
    """An error in words: the file, unless it is the `known` one, the reason and, of the disk, the fix."""
    if not isinstance(error, OSError) or error.errno is None or error.filename is None:
        text = str(error) or type(error).__name__
        if _DEBUG in text:  # obstore's
            text = brief(error)
        return text.removeprefix(known).lstrip(": ") if known else text
    where = "" if str(error.filename) == known else f"{error.filename}: "
    fix = "" if "://" in str(error.filename) else _FIXES.get(error.errno, "")
    return f"{where}{error.strerror}{f' ({fix})' if fix else ''}"


def _sleep(seconds: float, stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not stopped():
        time.sleep(min(left, _SLICE_SECONDS))
