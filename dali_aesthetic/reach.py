"""What a run needs beyond this machine, asked for once, impatiently: inputs, a store to write to, Ray."""

from __future__ import annotations

import glob
import os
import re
import socket
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fsspec.utils import glob_translate

from dali_aesthetic.shards.formats import extension
from dali_aesthetic.shards.inputs import InputError
from dali_aesthetic.shards.listing import expand_braces
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.stores.access import open_file
from dali_aesthetic.stores.location import fixed_root, is_url, join, protocol
from dali_aesthetic.stores.open import store_of
from dali_aesthetic.stores.store import Store
from dali_aesthetic.types import Buffer

_RAY_PORT = 6379
_RAY_CLUSTER = Path("/tmp/ray/ray_current_cluster")
_SECONDS = 3.0
_BLOCK = 512
_SHARDS = ("tar", "parquet")


def reach_input(location: str) -> Iterator[Finding]:
    """Whether an input is there and can be read: one listing and one small read."""
    try:
        detail, fix = _remote(location) if _is_remote(location) else _planned(location)
    except Exception as error:  # each store's client has errors of its own
        fix = "check the location, the credentials and the network; `inspect` reads a little of it"
        yield Finding("input", Verdict.FAIL, f"{location}: {error or type(error).__name__}", fix)
        return
    yield Finding("input", Verdict.WARN if fix else Verdict.OK, f"{location}: {detail}", fix)


def _is_remote(location: str) -> bool:
    return is_url(location) and not location.startswith("@")


def _planned(location: str) -> tuple[str, str]:
    shards = plan_shards([location])
    count = f"{len(shards):,} {shards[0].kind} {'shards' if len(shards) > 1 else 'shard'}"
    first = shards[0].source
    if is_url(first):  # of a list file
        detail, fix = _read_a_little(first)
        return f"{count}; {detail}", fix
    if shards[0].kind != "folder":  # there a file that can't be read is a row, no failure
        with open_file(first) as file:
            file.read(_BLOCK)
    return count, ""


def _remote(url: str) -> tuple[str, str]:
    first = (expand_braces(url)[0] if "{" in url else url).rstrip("/")
    if glob.has_magic(first) or extension(first) not in _SHARDS:
        first = _first_listed(first)
    return _read_a_little(first)


def _first_listed(url: str) -> str:
    """The first shard below a folder or of a pattern, as far as a listing has to be read for it."""
    store, key = store_of(url)
    fits = re.compile(glob_translate(key)) if glob.has_magic(key) else None
    wanted = "parquet" if extension(key) == "parquet" else "tar"
    has_sizes = protocol(url) not in ("http", "https")  # a web server's page of links has none
    for name, size in store.list(fixed_root(key)):
        is_there = size > 0 or not has_sizes
        if is_there and extension(name) == wanted and (fits is None or fits.match(name)):
            return join(store.name, name)
    raise InputError(f"it holds no .{wanted}")


def _read_a_little(url: str) -> tuple[str, str]:
    """What the first bytes of an object say, and what to do where it comes only whole."""
    store, key = store_of(url)
    info = store.info(key)
    if info.has_ranges:
        read = len(store.read(key, 0, min(_BLOCK, info.size)))
        return f"readable ({key}: {info.size:,} bytes, {read} read)", ""
    with closing(_started(store, key)) as parts:
        read = len(next(parts, b""))
    detail = f"readable ({key}: {info.size:,} bytes, {read} read), but the server doesn't know Range"
    return (
        detail,
        "each shard is held in memory whole; where that is too much, copy them to a disk or a store",
    )


def _started(store: Store, key: str) -> Generator[Buffer, None, None]:
    yield from store.read_all(key)


def reach_output(url: str) -> Iterator[Finding]:
    """Whether objects can be made and removed below a URL: makes one and removes it."""
    probe = join(url, f".doctor-{os.getpid()}")
    try:
        store, key = store_of(probe)
        store.put(key, b"dali-aesthetic doctor")
        store.delete(key)
    except Exception as error:  # each store's client has errors of its own
        fix = "check the location, the credentials and whether they may write and delete"
        yield Finding("output", Verdict.FAIL, f"{url}: {error or type(error).__name__}", fix)
        return
    yield Finding("output", Verdict.OK, f"{url}: an object was written and removed")


def reach_ray(address: str | None = None) -> Iterator[Finding]:
    """Whether Ray is installed and the cluster that a run would join answers.

    `address` is RAY_ADDRESS where it is None; without one it is the cluster that runs on this machine.
    """
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        yield Finding("ray", Verdict.FAIL, "not installed", "pip install 'dali-aesthetic[ray]'")
        return
    wanted = address or os.environ.get("RAY_ADDRESS", "")
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


# FOLDED dali_aesthetic/finding.py: What a check before a run found.


class Verdict(StrEnum):
    """How a check went. A warning doesn't stop a run; a failure does."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` says what to do, and is empty where there is nothing to do."""

    check: str
    verdict: Verdict
    detail: str
    fix: str = ""


def as_dict(finding: Finding) -> dict[str, Any]:
    """For JSON."""
    return {name: str(getattr(finding, name)) for name in ("check", "verdict", "detail", "fix")}
