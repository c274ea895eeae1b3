"""What a store can do, whichever it is, and which one a URL means."""

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
"""The extra of this package that brings what a protocol needs."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as it is now: its bytes, and a tag that another content would not have ("" if unknown).

    `has_ranges` is False where the server sends it only whole. `is_guarded` says that `read` itself notices
    another tag; else one has to ask again behind the last read.
    """

    size: int
    tag: str = ""
    has_ranges: bool = True
    is_guarded: bool = True


class Store(Protocol):
    """One bucket, container, dataset or server. A key is the path below it.

    Every call is one attempt. Raises FileNotFoundError, PermissionError and the errors of `errors.py`, and
    whatever the client raises for what may pass.
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
        """Makes an object. Raises FileExistsError where there is one, NoConditions where it can't know."""

    def replace(self, key: str, content: bytes, tag: str) -> None:
        """Puts `content` in place of the version `tag`. Raises ObjectChanged where another one is there."""

    def delete(self, key: str) -> None:
        """Removes an object; no error where there is none."""


def missing_package(scheme: str, error: Exception) -> StoreUnusable:
    """What to install for a scheme whose package can't be imported."""
    extra = EXTRAS.get(scheme)
    fix = f"pip install 'dali-aesthetic[{extra}]'" if extra else f"install the package of fsspec for {scheme}"
    return StoreUnusable(f"{scheme}:// needs a package that is missing ({error}): {fix}")


# FOLDED dali_aesthetic/stores/errors.py: What can go wrong with a store, told apart by what to do about it.


class StoreError(OSError):
    """A store did not do what it was asked for, also not when asked again; the text says what and where."""


class ObjectChanged(StoreError):
    """An object is no longer the one that was opened; what was read of it must not be used."""


class NoRanges(StoreError):
    """The server sends whole objects only."""


class NoConditions(StoreError):
    """The store can't make a write depend on what is there."""


class StoreUnusable(ValueError):
    """A package or a setting that a store needs is missing or not understood; the text says which."""


LASTING = (
    *(FileNotFoundError, FileExistsError, PermissionError, NotImplementedError),
    *(ObjectChanged, NoRanges, NoConditions, StoreUnusable, ImportError, TypeError),
)
"""Asking again would not help."""
