"""The interface of a store, and its errors, which differ by what the caller can do about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dali_aesthetic.types import Buffer

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
