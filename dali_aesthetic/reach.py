"""What a run needs beyond this machine, asked for once, impatiently: inputs, a store to write to, Ray."""

from __future__ import annotations

import glob
import os
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from dali_aesthetic.finding import Finding, Verdict
from dali_aesthetic.shards.inputs import InputError, expand_braces
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.stores.access import open_file
from dali_aesthetic.stores.location import is_url, join
from dali_aesthetic.stores.store import store_of

_RAY_PORT = 6379
_RAY_CLUSTER = Path("/tmp/ray/ray_current_cluster")
_SECONDS = 3.0
_BLOCK = 512


def reach_input(location: str) -> Iterator[Finding]:
    """Whether an input is there and can be read: one listing and one small read."""
    try:
        detail = _first_object(location) if is_url(location) else _local(location)
    except Exception as error:  # each store's client has errors of its own
        fix = "check the location, the credentials and the network; `inspect` reads a little of it"
        yield Finding("input", Verdict.FAIL, f"{location}: {error or type(error).__name__}", fix)
        return
    yield Finding("input", Verdict.OK, f"{location}: {detail}")


def _local(location: str) -> str:
    shards = plan_shards([location])
    if shards[0].kind != "folder":  # there a file that can't be read is a row, no failure
        with open_file(shards[0].source) as file:
            file.read(_BLOCK)
    return f"{len(shards):,} {shards[0].kind} {'shards' if len(shards) > 1 else 'shard'}"


def _first_object(url: str) -> str:
    first = expand_braces(url)[0] if "{" in url else url
    store, key = store_of(first)
    if glob.has_magic(key) or not os.path.splitext(key)[1]:
        while glob.has_magic(key):
            key = os.path.dirname(key)
        found = next((name for name, size in store.list(key) if size), None)
        if found is None:
            raise InputError("it holds nothing")
        key = found
    size = store.info(key).size
    read = len(store.read(key, 0, min(_BLOCK, size)))
    return f"readable ({key}: {size:,} bytes, {read} read)"


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
