"""Checks of what a run needs beyond this machine: inputs, a store to write to, Ray. Nothing is retried."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from dali_aesthetic.embeddings.files import find_embeddings, holds_embeddings
from dali_aesthetic.shards.formats import extension
from dali_aesthetic.shards.listing import InputError, expand_braces
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.resolve import matcher
from dali_aesthetic.stores.access import open_file
from dali_aesthetic.stores.location import is_url, join, protocol
from dali_aesthetic.stores.open import store_of
from dali_aesthetic.stores.store import told

_RAY_PORT = 6379
_RAY_CLUSTER = Path("/tmp/ray/ray_current_cluster")
_SECONDS = 3.0
_BLOCK = 512


class Verdict(StrEnum):
    """The outcome of a check. A warning doesn't stop a run; a failure does."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` says what to do; it is empty where there is nothing to do."""

    check: str
    verdict: Verdict
    detail: str
    fix: str = ""


def reach_input(location: str, follow_links: bool = False) -> Iterator[Finding]:
    """Checks that an input is there and can be read, with one listing and one small read."""
    try:
        is_remote = is_url(location) and not location.startswith("@")
        detail, fix = _remote(location) if is_remote else _local(location, follow_links)
    except Exception as error:  # each store's client has errors of its own
        fix = "check the location, the credentials and the network; `inspect` reads a little of it"
        yield Finding("input", Verdict.FAIL, f"{location}: {told(error, location)}", fix)
        return
    yield Finding("input", Verdict.WARN if fix else Verdict.OK, f"{location}: {detail}", fix)


def _local(location: str, follow_links: bool) -> tuple[str, str]:
    if holds_embeddings([location]):
        files = find_embeddings(location)
        _check_readable(files[0].path)
        return f"{_counted(len(files), '.npy file')} of embeddings", ""
    shards = plan_shards(location, follow_links=follow_links)
    count, first = _counted(len(shards), f"{shards[0].kind} shard"), shards[0].source
    if is_url(first):  # of a list file
        detail, fix = _read_a_little(first)
        return f"{count}; {detail}", fix
    if shards[0].kind != "folder":  # an image that can't be read is a row, not a failure
        _check_readable(first)
    return count, "; ".join(shards[0].warnings)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number > 1 else ''}"


def _check_readable(path: str) -> None:
    with open_file(path) as file:
        file.read(_BLOCK)


def _remote(url: str) -> tuple[str, str]:
    first = (expand_braces(url)[0] if "{" in url else url).rstrip("/")
    if matcher(first)[0] != first or extension(first) not in ("tar", "parquet"):
        first = _first_listed(first)
    return _read_a_little(first)


def _first_listed(url: str) -> str:
    """The first tar of a folder or glob, where the listing ends; without one the first Parquet file."""
    root, fits = matcher(url)
    store, key = store_of(root, attempts=1)
    has_sizes = protocol(url) not in ("http", "https")  # a web server's page of links has none
    likely = "parquet" if extension(url) == "parquet" else "tar"
    second = ""
    for name, size in store.list(key):
        found = join(store.name, name)
        if (size > 0 or not has_sizes) and fits(found):
            if extension(name) == likely:
                return found
            second = second or (found if extension(name) == "parquet" else "")
    if not second:
        raise InputError("it holds no .tar and no .parquet")
    return second


def _read_a_little(url: str) -> tuple[str, str]:
    """Reads the first bytes of an object. Returns the result, and the fix where it can only be read whole."""
    store, key = store_of(url, attempts=1)
    info = store.info(key)
    if info.has_ranges:
        read = len(store.read(key, 0, min(_BLOCK, info.size)))
        return f"readable ({key}: {info.size:,} bytes, {read} read)", ""
    read = len(next(store.read_all(key), b""))
    detail = f"readable ({key}: {info.size:,} bytes, {read} read), but the server doesn't know Range"
    return (
        detail,
        "each shard is held in memory whole; where that is too much, copy them to a disk or a store",
    )


def reach_output(url: str) -> Iterator[Finding]:
    """Checks that objects can be written and deleted below a URL: writes one and deletes it."""
    probe = join(url, f".doctor-{os.getpid()}")
    try:
        store, key = store_of(probe, attempts=1)
        store.put(key, b"dali-aesthetic doctor")
        store.delete(key)
    except Exception as error:  # each store's client has errors of its own
        fix = "check the location, the credentials and whether they may write and delete"
        yield Finding("output", Verdict.FAIL, f"{url}: {told(error, url)}", fix)
        return
    yield Finding("output", Verdict.OK, f"{url}: an object was written and removed")


def reach_ray() -> Iterator[Finding]:
    """Checks that Ray is installed and that the cluster which a run would join answers.

    That is the one of RAY_ADDRESS, and without that the cluster that runs on this machine.
    """
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        yield Finding("ray", Verdict.FAIL, "not installed", "in the clone, pip install '.[ray]'")
        return
    wanted = os.environ.get("RAY_ADDRESS", "")
    address = "" if wanted == "local" else wanted
    if wanted in ("", "auto"):
        address = _RAY_CLUSTER.read_text().strip() if _RAY_CLUSTER.exists() else ""
    if wanted == "auto" and not address:
        fix = "start one (ray start --head), or unset RAY_ADDRESS"
        yield Finding("ray", Verdict.FAIL, f"{version}; the address is auto, but no cluster runs here", fix)
        return
    if not address:
        known = "the address is local" if wanted else "no cluster is known"
        yield Finding("ray", Verdict.OK, f"{version}; {known}: a run starts one on this machine")
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or _RAY_PORT), _SECONDS):
            yield Finding("ray", Verdict.OK, f"{version}; the cluster at {address} answers")
    except (OSError, ValueError) as error:
        fix = "start it (ray start --head), or correct or unset RAY_ADDRESS"
        yield Finding("ray", Verdict.FAIL, f"{version}; nothing answers at {address}: {error}", fix)
