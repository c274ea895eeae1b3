"""The store that a URL names."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import fsspec

from dali_aesthetic.stores.store import BACK_OFF, EXTRAS, Store, StoreUnusable, missing_package

_QUERY = re.compile(r"\?[^/]*=")
_PLACE = re.compile(r"[\w.:@%\[\]-]+", re.ASCII)


def store_of(url: str, attempts: int | None = None) -> tuple[Store, str]:
    """The store of `url` and the key in it.

    A client that repeats requests makes `attempts` at each, by default those of `BACK_OFF`. Raises
    StoreUnusable naming the missing package or setting, for a place that nothing can have, and for a web
    address with a query string.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() in ("http", "https") and _QUERY.search(rest):
        raise StoreUnusable(
            f"{url}: web addresses with a query string are not read (`?` is a wildcard); download the file, "
            "or give its address in the store, such as s3://BUCKET/KEY"
        )
    place, _, key = rest.partition("/")
    if scheme.lower() in EXTRAS and not _PLACE.fullmatch(place):
        raise StoreUnusable(f"{url}: {place!r} is no bucket or server; write {scheme}://NAME/...")
    return _store(scheme.lower(), place, attempts or BACK_OFF.attempts), key


@lru_cache(maxsize=64)
def _store(scheme: str, place: str, attempts: int) -> Store:
    try:
        if scheme in ("s3", "s3a"):
            from dali_aesthetic.stores.objects import s3_store

            return s3_store(place, attempts)
        if scheme in ("http", "https"):
            from dali_aesthetic.stores.objects import http_store

            return http_store(f"{scheme}://{place}", attempts)
        return _file_system(scheme, place)
    except ImportError as error:
        raise missing_package(scheme, error) from error
    except StoreUnusable:
        raise
    except ValueError as error:  # of the client: a port that is no number, for example
        raise StoreUnusable(f"{scheme}://{place} can't be opened: {error}") from error


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
