"""One run at a time in an output folder: a lock that ends with its process.

Two runs in one folder could not tear a file (every one is renamed into place whole), but they would do the
same work twice. The lock is the run's, not a worker's: a launcher holds it for all the workers it starts.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dali_aesthetic.layout import LOCK
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.write.files import Owner, naming
from dali_aesthetic.write.remote_lock import claim_url

_MAX_OWNER_BYTES = 256
_JOB = "job "
_JOIN_SECONDS, _JOIN_WAIT_SECONDS = 5.0, 0.05


class OutputBusy(ValueError):
    """Another run is writing to the output."""


class OutputUnwritable(PermissionError):
    """This user may not write the output. The message says who may, and what to do."""


@contextmanager
def claim(output: str | Path, *, job: str = "", leads: bool = True) -> Iterator[None]:
    """Holds `output` for this process as long as the block runs, or for all processes of the same `job`.

    Raises OutputBusy naming the host and process that hold it, and OSError where it can't be written,
    OutputUnwritable where that is for want of rights. The kernel drops the lock of a process that dies, on
    NFS its server does. On a file system without locks only another process of this host is noticed. At a
    URL see `remote_lock.py`; there the one process of a job that `leads` holds the lock for the others.
    """
    if is_url(os.fspath(output)) and not leads:
        yield
        return
    if is_url(os.fspath(output)):
        with claim_url(os.fspath(output), LOCK) as lock:
            if not lock.is_held:
                raise _busy(output, str(lock.holder or ""))
            yield
        return
    path = Path(output) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _join_job(path, job) if job else _acquire(path)
    except PermissionError as error:
        raise _unwritable(path.parent, error) from None
    try:
        yield
    finally:
        if not job or _is_last(descriptor):
            path.unlink(missing_ok=True)  # before the lock goes: afterwards it may be another's
        os.close(descriptor)


def _join_job(path: Path, job: str) -> int:
    """A lock that the processes of one job share. The first one writes the job's name while it is alone."""
    name, deadline = f"{_JOB}{job}".encode()[:_MAX_OWNER_BYTES], time.monotonic() + _JOIN_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if _join(descriptor, path, name):
                return descriptor
            if time.monotonic() > deadline:
                raise _busy(path.parent, _read(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(_JOIN_WAIT_SECONDS)


def _join(descriptor: int, path: Path, name: bytes) -> bool:
    """Whether the lock is ours and our job's. Another process may be just writing its name: then not yet."""
    try:
        if _flock(descriptor, fcntl.LOCK_EX) and _is_same_file(descriptor, path):
            with naming(path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, name, 0)
        # From exclusive to shared there may be a moment without a lock: what is written is read again.
        return (
            _flock(descriptor, fcntl.LOCK_SH)
            and _is_same_file(descriptor, path)
            and os.pread(descriptor, _MAX_OWNER_BYTES, 0) == name
        )
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            return True  # a file system without locks: nobody can be noticed
        raise


def _is_last(descriptor: int) -> bool:
    """Whether no other process of the job holds the lock. Gives up the own share where one does."""
    try:
        return _flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # NFS says the latter
        return False
    return True


def _read(descriptor: int) -> str:
    return os.pread(descriptor, _MAX_OWNER_BYTES, 0).decode("utf-8", "replace")


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
    text = _read(descriptor)
    there = Owner.parse(text)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # NFS says the latter
        raise _busy(path.parent, text) from None
    except OSError as error:  # the file system has no locks
        if there is not None and there.is_here and there.is_alive and there != Owner.current():
            raise _busy(path.parent, text) from error


def _unwritable(output: Path, error: PermissionError) -> OutputUnwritable:
    refused = Path(error.filename or output)
    there = next(place for place in (refused, *refused.parents) if os.access(place, os.F_OK))
    return OutputUnwritable(
        f"{output} can't be written ({error.strerror}): {there} belongs to uid {there.stat().st_uid}, this "
        f"process is uid {os.getuid()}; chown it to that, give another --output, or start a container as its "
        'owner: docker run --user "$(id -u):$(id -g)"'
    )


def _busy(output: str | Path, holder: str) -> OutputBusy:
    owner = Owner.parse(holder)
    who = owner.described if owner is not None else holder.partition(_JOB)[2] or "another process"
    return OutputBusy(
        f"{output} is being written by {who}: wait for it, stop it, or give another --output "
        "(one run uses all of a machine's GPUs; to share work among machines give each its own shards)"
    )


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
