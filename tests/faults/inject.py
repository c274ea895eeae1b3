"""Injects named faults, `KIND:WHERE:COUNT`, into a process before it runs.

`raise` raises at the COUNT-th call of a place, `hang` sleeps there for ever, `slow` sleeps 20 ms at each call
from the COUNT-th on, `die` kills the process before the call and `die-after` after it. The places are one
function of each stage, and the system calls of a commit. Other kinds change the environment: a small or a
read-only disk, a file size limit, a file system without locks. `poison` kills the process at the first sample
of the shard WHERE.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import fcntl
import itertools
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import dali_aesthetic.decode.batches
import dali_aesthetic.decode.decoder
import dali_aesthetic.score.scorer
import dali_aesthetic.shards.tar
import dali_aesthetic.write.sink

PLACES: dict[str, tuple[Any, str]] = {
    "reader": (dali_aesthetic.shards.tar._TarReader, "_take"),
    "check": (dali_aesthetic.decode.batches, "check"),
    "decoder": (dali_aesthetic.decode.decoder.DaliDecoder, "_finish"),
    "encoder": (dali_aesthetic.score.scorer._Launched, "_launch"),
    "writer": (dali_aesthetic.write.sink.ShardSink, "write"),
    "rename": (os, "replace"),
    "link": (os, "link"),
    "sync": (os, "fsync"),
    "write": (os, "writev"),
}
_NEW_NAMESPACE, _READ_ONLY = 0x00020000, 1


def install(fault: str) -> None:
    """Injects one fault into this process."""
    kind, where, count = fault.split(":")
    if kind == "disk":
        small_disk(where, int(count))
    elif kind == "read-only":
        small_disk(where, 1 << 20, _READ_ONLY)
    elif kind == "copy-at-exit":
        atexit.register(shutil.copytree, *where.split(">"))
    elif kind == "poison":
        _poison(where)
    elif kind == "no-locks":
        fcntl.flock = _no_locks
    elif kind == "file-limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(count), int(count)))
    else:
        _replace(*PLACES[where], _ACTIONS[kind], int(count), after=kind.endswith("after"))


def _replace(owner: Any, name: str, act: Callable[[int, int], None], count: int, after: bool) -> None:
    original, calls = getattr(owner, name), itertools.count(1)

    def with_fault(*arguments: Any, **named: Any) -> Any:
        call = next(calls)
        if not after:
            act(call, count)
        result = original(*arguments, **named)
        if after:
            act(call, count)
        return result

    setattr(owner, name, with_fault)


def _poison(name: str) -> None:
    write = dali_aesthetic.write.sink.ShardSink.write

    def with_poison(sink: Any, batch: Any) -> Any:
        if any(sample.shard.name == name for sample in batch.encoded.samples):
            os.kill(os.getpid(), signal.SIGKILL)
        return write(sink, batch)

    dali_aesthetic.write.sink.ShardSink.write = with_poison


def _raise(call: int, count: int) -> None:
    if call == count:
        raise RuntimeError("injected fault")


def _hang(call: int, count: int) -> None:
    while call == count:
        time.sleep(3600)


def _slow(call: int, count: int) -> None:
    if call >= count:
        time.sleep(0.02)


def _die(call: int, count: int) -> None:
    if call == count:
        os.kill(os.getpid(), signal.SIGKILL)


_ACTIONS = {"raise": _raise, "hang": _hang, "slow": _slow, "die": _die, "die-after": _die}


def _no_locks(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def small_disk(folder: str, num_bytes: int, flags: int = 0) -> None:
    """Mounts a tmpfs of `num_bytes` on `folder` for this process alone. Raises OSError if forbidden."""
    libc = ctypes.CDLL(None, use_errno=True)
    for failed in (
        lambda: libc.unshare(_NEW_NAMESPACE),
        lambda: libc.mount(
            b"none", b"/", None, 0x44000, None
        ),  # private: nothing of it leaves this namespace
        lambda: libc.mount(b"tmpfs", folder.encode(), b"tmpfs", flags, f"size={num_bytes}".encode()),
    ):
        if failed():
            raise OSError(ctypes.get_errno(), "can't mount a small disk here")
