"""What a store can do, whichever it is, and which one a URL means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import fsspec

from dali_aesthetic.stores.errors import StoreUnusable
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


def store_of(url: str) -> tuple[Store, str]:
    """The store of `url`, and the key in it. Raises StoreUnusable naming what is to be installed or set."""
    scheme, _, rest = url.partition("://")
    place, _, key = rest.partition("/")
    return _store(scheme.lower(), place), key


@lru_cache(maxsize=64)
def _store(scheme: str, place: str) -> Store:
    try:
        if scheme in ("s3", "s3a"):
            from dali_aesthetic.stores.objects import s3_store

            return s3_store(place)
        if scheme in ("http", "https"):
            from dali_aesthetic.stores.objects import http_store

            return http_store(f"{scheme}://{place}")
        return _file_system(scheme, place)
    except ImportError as error:
        raise missing_package(scheme, error) from error


def _file_system(scheme: str, place: str) -> Store:
    from dali_aesthetic.stores.filesystem import FileSystemStore

    options: dict[str, Any] = {"use_listings_cache": False}
    try:
        system = fsspec.filesystem(scheme, **options)
    except TypeError:
        system = fsspec.filesystem(scheme)
    except ValueError as error:
        known = ", ".join(f"{name}://" for name in sorted(EXTRAS))
        raise StoreUnusable(f"{scheme}:// can't be opened ({error}); known are {known}") from error
    return FileSystemStore(f"{scheme}://{place}", system, f"{scheme}://{place}/")


def missing_package(scheme: str, error: Exception) -> StoreUnusable:
    """What to install for a scheme whose package can't be imported."""
    extra = EXTRAS.get(scheme)
    fix = f"pip install 'dali-aesthetic[{extra}]'" if extra else f"install the package of fsspec for {scheme}"
    return StoreUnusable(f"{scheme}:// needs a package that is missing ({error}): {fix}")
