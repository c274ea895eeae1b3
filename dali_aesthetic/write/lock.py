"""One run at a time in an output: a file lock in a folder, a lease with a heartbeat at a URL.

Neither protects files: each is written whole and is the same bytes whoever writes it, so two runs in one
output could only do the same work twice. The lock belongs to the run, not to a worker: a launcher holds it
for all the workers it starts.

The kernel drops the lock of a process that dies; on NFS its server does. On a file system without locks only
another process of this host is noticed. A lease is an object that its holder rewrites every
`HEARTBEAT_SECONDS`. It expires after `LEASE_SECONDS` without a heartbeat, or at once if its holder was a
process of this host that is dead. Where the store has conditional writes (S3 and its like), two runs never
both start. Elsewhere two that start in the same second may.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dali_aesthetic.layout import LOCK
from dali_aesthetic.overlap import every
from dali_aesthetic.stores.location import is_url, join
from dali_aesthetic.stores.open import store_of
from dali_aesthetic.stores.store import (
    BACK_OFF,
    LASTING,
    NoConditions,
    ObjectChanged,
    ObjectInfo,
    retried,
    told,
)
from dali_aesthetic.types import ConfigError
from dali_aesthetic.write.files import Owner, make_folder, naming

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 15.0
LEASE_SECONDS = 60.0
_POLL_SECONDS = 2.0
_MANY = 1_000_000
_MAX_HOLDER_BYTES = 256
_JOB = "job "
_JOIN_SECONDS, _JOIN_POLL_SECONDS = 5.0, 0.05
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class OutputBusy(ConfigError):
    """Another run is writing to the output."""


class OutputUnwritable(PermissionError):
    """This user may not write the output. The message says who may, and what to do."""


@contextmanager
def claim(output: str | Path, *, job: str = "") -> Iterator[None]:
    """Holds `output` for this process while the block runs, or for all processes of the same `job`.

    Raises OutputBusy naming the job or the host and process that hold it, OutputUnwritable for a folder that
    can't be written, and another OSError for a URL.
    """
    location = os.fspath(output)
    if is_url(location):
        with _leased(location, job):
            yield
    else:
        with _locked(Path(output) / LOCK, job):
            yield


@contextmanager
def _locked(path: Path, job: str) -> Iterator[None]:
    is_new = not path.parent.exists()
    try:
        make_folder(path.parent)
        descriptor = _lock(path, f"{_JOB}{job}" if job else str(Owner.current()), shared=bool(job))
    except PermissionError as error:
        raise _unwritable(path.parent, error) from None
    except OSError as error:
        raise OutputUnwritable(f"{path.parent} can't be written: {told(error, str(path.parent))}") from None
    try:
        yield
    finally:
        if not job or _is_last(descriptor):
            path.unlink(missing_ok=True)  # while the lock is held: afterwards the file may be another run's
        if is_new and not job:
            with suppress(OSError):  # not empty: the run has begun
                path.parent.rmdir()
        os.close(descriptor)


def _lock(path: Path, holder: str, shared: bool) -> int:
    """A descriptor that holds the lock `path`, which names the `holder`.

    The first process of a job names it while it holds the lock alone, and then shares it. Others of the job
    wait for that.
    """
    name = holder.encode()[:_MAX_HOLDER_BYTES]
    deadline = time.monotonic() + (_JOIN_SECONDS if shared else 0.0)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if _try_lock(descriptor, path, name, shared):
                return descriptor
            # Its last holder may have removed the file since it was opened: then the lock is on nothing.
            if _is_same_file(descriptor, path) and time.monotonic() >= deadline:
                raise _busy(path.parent, _read(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(_JOIN_POLL_SECONDS)


def _try_lock(descriptor: int, path: Path, name: bytes, shared: bool) -> bool:
    try:
        alone = _flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        there = Owner.parse(_read(descriptor))
        others = there is not None and there.is_here and there.is_alive and there != Owner.current()
        if not shared and not others:
            _write(descriptor, path, name)
        return shared or not others
    if alone and _is_same_file(descriptor, path):
        _write(descriptor, path, name)
    if not shared:
        return alone and _is_same_file(descriptor, path)
    # Going from exclusive to shared may drop the lock for a moment: the name is read again.
    is_ours = _flock(descriptor, fcntl.LOCK_SH) and _read(descriptor).encode() == name
    return is_ours and _is_same_file(descriptor, path)


def _is_last(descriptor: int) -> bool:
    """Whether no other process of the job holds the lock. Gives up the own share where one does."""
    try:
        return _flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # NFS raises the latter
        return False
    return True


def _read(descriptor: int) -> str:
    return os.pread(descriptor, _MAX_HOLDER_BYTES, 0).decode("utf-8", "replace")


def _write(descriptor: int, path: Path, name: bytes) -> None:
    with naming(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, name, 0)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


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


@contextmanager
def _leased(output: str, job: str) -> Iterator[None]:
    lease = _Lease(output, job)
    lease.acquire()
    try:
        with every(HEARTBEAT_SECONDS, lease.renew, "lease"):
            try:
                yield
            finally:
                lease.stop()
    finally:
        lease.release()


class _Lease:
    """The lease object of one output, of one process or of all that have the same `job`.

    Any process of a job renews the lease, and makes it again when another one has released it.
    """

    def __init__(self, output: str, job: str = "") -> None:
        self._output, self._url, self._job = output, join(output, LOCK), job
        self._store, self._key = store_of(self._url)
        self._run, self._beats, self._tag = job or secrets.token_hex(8), 0, ""
        self._until: float | None = None
        self._is_stopped = self._is_lost = False

    def acquire(self) -> None:
        """Takes the lease, an expired one too: another host's is watched for up to `LEASE_SECONDS`.

        Raises OutputBusy where it is held.
        """
        while not self._write(None):
            if (found := self._read()) is None:
                continue  # released meanwhile
            content, tag = found
            owner = Owner.parse(str(content.get("owner")))
            if not self._has_expired(content, owner):
                raise _busy(
                    self._output, f"{_JOB}{content['job']}" if content.get("job") else str(owner or "")
                )
            if self._write(tag):
                return

    def renew(self) -> None:
        """A heartbeat, tried for as long as the lease lasts.

        A failure doesn't stop the run: at worst another one does the same work.
        """
        self._until = time.monotonic() + LEASE_SECONDS - HEARTBEAT_SECONDS
        with suppress(*LASTING):
            if (found := self._read()) is None:
                self._write(None)
            elif not self._is_ours(found):
                if not self._is_lost:
                    _LOG.warning("%s: another run took over the lock and does the same work", self._output)
                self._is_lost = True
            elif self._job and found[1] != self._tag:
                self._tag = found[1]  # renewed by another process of the job
            else:
                self._write(found[1])

    def stop(self) -> None:
        """Ends the attempts of a heartbeat."""
        self._is_stopped = True

    def release(self) -> None:
        """Removes the lease if it still is ours."""
        self._until, self._is_stopped = time.monotonic() + HEARTBEAT_SECONDS, False
        with suppress(*LASTING):
            if (found := self._read()) is not None and self._is_ours(found):
                self._ask(lambda: self._store.delete(self._key), f"removing {self._url}")

    def _ask(self, call: Callable[[], T], what: str) -> T:
        if self._until is None:
            return retried(call, what)
        back_off = replace(BACK_OFF, attempts=_MANY, most=HEARTBEAT_SECONDS / 3)
        return retried(call, what, self._is_late, back_off)

    def _is_late(self) -> bool:
        return self._is_stopped or (self._until is not None and time.monotonic() >= self._until)

    def _has_expired(self, content: dict[str, Any], owner: Owner | None) -> bool:
        if owner is not None and owner.is_here and not content.get("job"):
            return not owner.is_alive
        end = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
            if (found := self._read()) is None or found[0] != content:
                return found is None
        return True

    def _write(self, tag: str | None) -> bool:
        """Writes the lease in place of the version `tag`, or of none. Whether it is ours then."""
        self._beats += 1
        facts = {"owner": str(Owner.current()), "run": self._run, "job": self._job, "renewed": self._beats}
        content, writing = json.dumps(facts).encode(), f"writing {self._url}"
        try:
            if tag is None:
                self._ask(lambda: self._store.create(self._key, content), writing)
            else:
                self._ask(lambda: self._store.replace(self._key, content, tag), writing)
        except (FileExistsError, ObjectChanged):
            pass  # ours after all, if an attempt went through whose answer got lost
        except FileNotFoundError:
            if tag is None:
                raise
            return False
        except NoConditions:
            if tag is None and (found := self._read()) is not None and not self._is_ours(found):
                return False
            self._ask(lambda: self._store.put(self._key, content), writing)
        if (found := self._read()) is None or not self._is_ours(found):
            return False
        self._tag = found[1]
        return True

    def _read(self) -> tuple[dict[str, Any], str] | None:
        """Content and tag; None where there is no lease."""
        while True:
            try:
                info = self._ask(lambda: self._store.info(self._key), f"opening {self._url}")
                content = self._ask(partial(self._content, info), f"reading {self._url}")
                return _parsed(content), info.tag
            except FileNotFoundError:
                return None
            except ObjectChanged:
                continue  # renewed between the two calls

    def _content(self, info: ObjectInfo) -> bytes:
        if info.is_guarded:
            return bytes(self._store.read(self._key, 0, info.size, info.tag))
        return b"".join(self._store.read_all(self._key))

    def _is_ours(self, found: tuple[dict[str, Any], str]) -> bool:
        return found[0].get("run") == self._run


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
