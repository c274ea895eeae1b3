"""One run at a time in an output folder: a lock that ends with its process.

Two runs in one folder could not tear a file (every one is renamed into place whole), but they would do the
same work twice. The lock is the run's, not a worker's: a launcher holds it for all the workers it starts.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dali_aesthetic.stores.location import is_url
from dali_aesthetic.write.files import naming
from dali_aesthetic.write.owner import Owner
from dali_aesthetic.write.remote_lock import claim_url

LOCK = ".lock"
_MAX_OWNER_BYTES = 256


class OutputBusy(ValueError):
    """Another run is writing to the output."""


@contextmanager
def claim(output: str | Path) -> Iterator[None]:
    """Holds `output` for this process as long as the block runs.

    Raises OutputBusy naming the host and process that hold it, and OSError where it can't be written. The
    kernel drops the lock of a process that dies, on NFS its server does. On a file system without locks only
    another process of this host is noticed. At a URL see `remote_lock.py`.
    """
    if is_url(os.fspath(output)):
        with claim_url(os.fspath(output), LOCK) as lock:
            if not lock.is_held:
                raise _busy(output, lock.holder)
            yield
        return
    path = Path(output) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock goes: afterwards it may be another's
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor, path)
            # Its last owner may have removed the file after we opened it: then the lock is on nothing.
            if _is_same_file(descriptor, path):
                with naming(path):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, str(Owner.current()).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    there = Owner.parse(os.pread(descriptor, _MAX_OWNER_BYTES, 0).decode("ascii", "replace"))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # NFS says the latter
        raise _busy(path.parent, there) from None
    except OSError as error:  # the file system has no locks
        if there is not None and there.is_here and there.is_alive and there != Owner.current():
            raise _busy(path.parent, there) from error


def _busy(output: str | Path, owner: Owner | None) -> OutputBusy:
    who = owner.described if owner is not None else "another process"
    return OutputBusy(
        f"{output} is being written by {who}: wait for it, stop it, or give another --output "
        "(one run uses all of a machine's GPUs; to share work among machines give each its own shards)"
    )


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
