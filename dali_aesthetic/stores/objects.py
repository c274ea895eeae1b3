"""S3 and HTTP servers through obstore (the object_store crate): half the CPU time of s3fs for the same bytes.

Downloads, listings and uploads in parts are retried by obstore, which resumes an interrupted body at the byte
where it stopped, for the same ETag only. All else is retried by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import fsspec
import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    GenericError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import HTTPStore, S3Store

from dali_aesthetic.stores.settings import S3Options, s3_options
from dali_aesthetic.stores.store import (
    BACK_OFF,
    NoConditions,
    NoRanges,
    ObjectChanged,
    ObjectInfo,
    StoreError,
    StoreUnusable,
    UnreadableKey,
    brief,
    gave_up,
    missing_package,
)
from dali_aesthetic.types import Buffer

T = TypeVar("T")
PART_BYTES = 16 << 20
"""Size of a part of an upload. S3 takes at most 10,000 parts: 160 GB."""
_PARTS_AT_ONCE = 4
_RETRY_SECONDS = 180
_EXHAUSTED = re.compile(r"after (\d+) retries|(response body error)")
_PLAIN = "http://"


def _client(url: str) -> Any:
    return {
        "allow_http": url.startswith(_PLAIN),
        "connect_timeout": timedelta(seconds=10),
        "read_timeout": timedelta(seconds=30),
        "timeout": timedelta(minutes=30),
    }


def _retries(attempts: int) -> Any:
    """obstore's settings for `attempts` at each request, with the pauses of `BACK_OFF`."""
    first, most = (timedelta(seconds=seconds) for seconds in (BACK_OFF.first, BACK_OFF.most))
    return {
        "max_retries": attempts - 1,
        "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
        "backoff": {"init_backoff": first, "max_backoff": most, "base": 2},
    }


def s3_store(bucket: str, attempts: int) -> ObstoreStore:
    """The bucket, with the settings of fsspec's configuration, boto3's files and the environment."""
    options = s3_options()
    config: Any = options.config

    def client(attempts: int) -> S3Store:
        return S3Store(
            bucket,
            config=config,
            client_options=_client(options.endpoint),
            retry_config=_retries(attempts),
            credential_provider=options.credentials,
        )

    return ObstoreStore(f"s3://{bucket}", client, attempts, hint=_hint(options))


def http_store(server: str, attempts: int) -> ObstoreStore:
    """A web server; `server` is `https://HOST[:PORT]`."""

    def client(attempts: int) -> HTTPStore:
        return HTTPStore(server, client_options=_client(server), retry_config=_retries(attempts))

    return ObstoreStore(server, client, attempts, is_web=True)


def _hint(options: S3Options) -> str:
    endpoint = f" at {options.endpoint}" if options.endpoint else ""
    return f"credentials from {options.source}, region {options.config.get('region', 'us-east-1')}{endpoint}"


class ObstoreStore:
    """A bucket or a web server. `hint` names the settings in use, for errors.

    `client` makes a client of so many attempts at each request. That for what takes several requests has the
    given `attempts`.
    """

    def __init__(
        self,
        name: str,
        client: Callable[[int], Any],
        attempts: int,
        *,
        is_web: bool = False,
        hint: str = "",
    ) -> None:
        self.name, self._is_web, self._hint, self._attempts = name, is_web, hint, attempts
        self._once, self._patient = client(1), client(attempts)
        self._has_bucket = is_web

    def info(self, key: str) -> ObjectInfo:
        """See `Store`. Requests one byte of a web server, since HEAD does not tell whether it has ranges."""
        if self._is_web:
            try:
                found = self._ask(key, lambda: self._get(self._once, key, {"range": (0, 1)}).meta)
                return _info(found)
            except (NoRanges, GenericError):
                pass
        try:
            found = self._ask(key, lambda: obstore.head(self._once, self._path(key)))
        except FileNotFoundError:
            self._look_for_bucket(key)
            raise
        return _info(found, has_ranges=not self._is_web)

    def _look_for_bucket(self, key: str) -> None:
        """Raises the error for a missing bucket, of which the answer to HEAD doesn't tell."""
        if not self._has_bucket:
            with suppress(PermissionError):
                self._ask(key, lambda: next(iter(obstore.list(self._once, prefix=key)), None))
            self._has_bucket = True

    def read(self, key: str, start: int, end: int, tag: str = "") -> Buffer:
        """See `Store`."""
        options: dict[str, Any] = {"range": (start, end)}
        if tag and not tag.startswith("W/"):  # a weak tag matches nothing
            options["if_match"] = tag
        result = self._ask(key, lambda: self._get(self._patient, key, options))
        if tag and _tag(result.meta) != tag:
            raise ObjectChanged(f"{self.name}/{key} changed while it was read")
        data = memoryview(self._ask(key, result.bytes))
        if len(data) != end - start:
            raise OSError(f"{self.name}/{key}: {len(data)} bytes came instead of {end - start}")
        return data

    def read_all(self, key: str) -> Iterator[Buffer]:
        """See `Store`."""
        result = self._ask(key, lambda: self._get(self._patient, key, None))
        yield from result.stream(min_chunk_size=1 << 20)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See `Store`. On a web server the links of its pages are the listing."""
        if self._is_web:
            yield from _linked(self.name, prefix)
            return
        last = ""
        try:
            below = prefix.strip("/") or None
            pages = iter(self._ask(prefix, lambda: obstore.list(self._patient, prefix=below)))
            while (page := self._ask(prefix, lambda: next(pages, None))) is not None:
                yield from ((meta["path"], meta["size"]) for meta in page)
                last = page[-1]["path"]
        except UnreadableKey:  # one such key takes its page with it
            yield from _listed_by_boto3(self.name.partition("://")[2], prefix, last)

    def put(self, key: str, content: Path | bytes) -> None:
        """See `Store`. Each part's SHA-256 is signed, so S3 refuses a part that was corrupted in transit."""
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        store = self._patient if size > PART_BYTES else self._once
        options = {"chunk_size": PART_BYTES, "max_concurrency": _PARTS_AT_ONCE}
        self._ask(key, lambda: obstore.put(store, key, content, **options))  # type: ignore[arg-type]

    def create(self, key: str, content: bytes) -> None:
        """See `Store`."""
        self._ask(key, lambda: obstore.put(self._once, key, content, mode="create"))

    def replace(self, key: str, content: bytes, tag: str) -> None:
        """See `Store`."""
        self._ask(key, lambda: obstore.put(self._once, key, content, mode={"e_tag": tag}))

    def delete(self, key: str) -> None:
        """See `Store`."""
        try:
            self._ask(key, lambda: obstore.delete(self._once, key))
        except FileNotFoundError:
            return

    def _get(self, store: Any, key: str, options: Any) -> Any:
        return obstore.get(store, self._path(key), options=options)

    def _path(self, key: str) -> str:
        return unquote(key) if self._is_web else key

    def _ask(self, key: str, call: Callable[[], T]) -> T:
        """The result of `call`; obstore's errors are translated to those of `store.py`."""
        where = f"{self.name}/{key}"
        try:
            return call()
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from None
            raise FileNotFoundError(2, "there is no such object", where) from None
        except PreconditionError:
            raise ObjectChanged(f"{where} changed since it was looked at") from None
        except AlreadyExistsError:
            raise FileExistsError(17, "there is such an object", where) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._denied(error, where) from None
        except (InvalidPathError, ValueError) as error:  # of a listing, of a call
            if "path" not in str(error):
                raise
            raise UnreadableKey(
                f"{where!r}: the client can't read keys with empty parts, `.`, `..` or control characters; "
                "copy the object to another key"
            ) from None
        except NotSupportedError as error:
            if "Range" in str(error):
                raise NoRanges(f"{where}: the server sends it only whole") from None
            raise NoConditions(f"{where}: {brief(error)}") from None
        except GenericError as error:
            if "NotImplemented" in str(error):
                raise NoConditions(f"{where}: {brief(error)}") from None
            # Listings have no errors of their own for these.
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from None
            if re.search("status code: 40[13] ", str(error)):
                raise self._denied(error, where) from None
            if (exhausted := _EXHAUSTED.search(str(error))) and exhausted[1] != "0":
                raise gave_up(where, int(exhausted[1] or self._attempts - 1) + 1, error) from error
            raise

    def _no_bucket(self) -> StoreUnusable:
        return StoreUnusable(f"there is no bucket {self.name} ({self._hint})")

    def _denied(self, error: Exception, where: str) -> PermissionError:
        return PermissionError(13, f"access denied ({self._hint}): {brief(error)}", where)


def _listed_by_boto3(bucket: str, prefix: str, after: str) -> Iterator[tuple[str, int]]:
    """As `Store.list`, of keys behind `after`: any key, at a fraction of obstore's speed."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    options = s3_options()
    keys = options.credentials() if options.credentials else options.config
    client = boto3.client(
        "s3",
        endpoint_url=options.endpoint or None,
        region_name=options.config.get("region", "us-east-1"),
        aws_access_key_id=keys.get("access_key_id"),
        aws_secret_access_key=keys.get("secret_access_key"),
        aws_session_token=keys.get("token") or keys.get("session_token"),
        config=Config(
            signature_version=UNSIGNED if options.config.get("skip_signature") else None,
            retries={"total_max_attempts": BACK_OFF.attempts, "mode": "standard"},
        ),
    )
    below = f"{prefix.strip('/')}/".lstrip("/")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=below, StartAfter=after)
    try:
        for page in pages:
            yield from ((found["Key"], found["Size"]) for found in page.get("Contents", ()))
    except (BotoCoreError, ClientError) as error:
        raise StoreError(f"listing s3://{bucket}/{below}: {error}") from error


def _linked(server: str, prefix: str) -> Iterator[tuple[str, int]]:
    try:
        system = fsspec.filesystem("http", use_listings_cache=False)
    except ImportError as error:
        raise missing_package("http", error) from error
    for url in sorted(system.find(f"{server}/{prefix}")):
        yield url.removeprefix(f"{server}/"), 0


def _info(meta: Any, has_ranges: bool = True) -> ObjectInfo:
    return ObjectInfo(size=int(meta["size"]), tag=_tag(meta), has_ranges=has_ranges)


def _tag(meta: Any) -> str:
    return str(meta["e_tag"] or "")
