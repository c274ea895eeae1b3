"""Atomic files: a temporary name that tells its process, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from dali_aesthetic.types import Buffer

_MAX_BUFFERS = 512
_MAX_WRITE_BYTES = 1 << 30
_OTHER_HOST_SECONDS = 24 * 3600
TEMPORARY = ".tmp-*"
"""The pattern of temporary files."""
_TEMPORARY = re.compile(r"\.tmp-(?P<owner>.+)-[0-9a-f]{16}")
_OWNER = re.compile(r"(?P<host>[A-Za-z0-9._]+)-(?P<pid>\d+)-(?P<started>\d+)")


class OutsideOutput(ValueError):
    """A name would be written outside the output folder."""


def output_path(output: Path, file: str) -> Path:
    """The path of `file` (as `layout` names it) below `output`, its folder made.

    Raises OutsideOutput for a name or link that leaves the first folder of `file`, which itself may be a
    link: that is the user's own choice of a disk.
    """
    folder, *parts = file.split("/")
    plain = [*parts[:-1], parts[-1].rpartition(".")[0]]
    if any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in plain):
        raise OutsideOutput(f"{file!r} is not a plain path below {output}; rename the input shard")
    root, path = output / folder, output / file
    make_folder(path.parent)
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise OutsideOutput(f"{path.parent} is a link to outside {root}; remove it or choose another output")
    return path


def temporary_path(final: Path) -> Path:
    """The name of a file until it is whole: hidden, in the same folder, and naming its process."""
    digest = sha256(final.name.encode()).hexdigest()[:16]
    return final.with_name(f".tmp-{Owner.current()}-{digest}")


def is_leftover(path: Path) -> bool:
    """Whether `path` is a temporary file of a dead process. Of another host's, whether it is a day old."""
    match = _TEMPORARY.fullmatch(path.name)
    owner = match and Owner.parse(match["owner"])
    if owner is None:
        return False
    if not owner.is_here:
        with contextlib.suppress(FileNotFoundError):
            return time.time() - path.stat().st_mtime > _OTHER_HOST_SECONDS
        return False
    return not owner.is_alive


def write_all(descriptor: int, buffers: Sequence[Buffer]) -> int:
    """Writes all `buffers` and returns the number of bytes. A short write (disk almost full) is continued."""
    total = 0
    for start in range(0, len(buffers), _MAX_BUFFERS):
        views = [memoryview(buffer) for buffer in buffers[start : start + _MAX_BUFFERS]]
        while views:
            written = os.writev(descriptor, views if len(views) > 1 else [views[0][:_MAX_WRITE_BYTES]])
            total += written
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if views:
                views[0] = views[0][written:]
    return total


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError the name of the file, where it has none or a temporary one, as of a full disk."""
    try:
        yield
    except OSError as error:
        unnamed = error.filename is None or _TEMPORARY.fullmatch(os.path.basename(error.filename))
        if unnamed and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def write_whole(final: Path, content: Buffer) -> None:
    """Writes a small file atomically."""
    temporary = write_temporary(final, content)
    publish(temporary, final)


def write_temporary(final: Path, content: Buffer) -> Path:
    """Writes `content` under the temporary name of `final`, in its folder, which is made, and syncs it.

    Removes the file if that fails.
    """
    temporary = temporary_path(final)
    make_folder(final.parent)
    with naming(final), removing_on_error(temporary):
        descriptor = open_new(temporary)
        try:
            write_all(descriptor, [content])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return temporary


def open_new(path: Path) -> int:
    """A descriptor of a new empty file with the permissions that the umask leaves."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o666)


@contextlib.contextmanager
def removing_on_error(path: Path) -> Iterator[None]:
    """Removes `path` if the block fails."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def publish(temporary: Path, final: Path) -> None:
    """Renames a synced temporary file, durably."""
    with naming(final), removing_on_error(temporary):
        os.replace(temporary, final)
        sync_folder(final.parent)


def make_folder(folder: Path) -> None:
    """Makes `folder` and what is missing above it; new folders survive a power failure with their files."""
    try:
        folder.mkdir()
    except FileNotFoundError:
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)  # another process may have been faster
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    with contextlib.suppress(PermissionError):  # a folder where one may write but not look
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Owner:
    """A process: host, process id, and start time, because ids are reused."""

    host: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> Self:
        """This process."""
        return cls(_host(), os.getpid(), _started(os.getpid()))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The owner from its `str()`; None for any other text."""
        match = _OWNER.fullmatch(text)
        return match and cls(match["host"], int(match["pid"]), int(match["started"]))

    def __str__(self) -> str:
        return f"{self.host}-{self.pid}-{self.started}"

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this host, which `is_alive` needs."""
        return self.host == _host()

    @property
    def is_alive(self) -> bool:
        """Whether this host still runs it."""
        return _started(self.pid) == self.started and _exists(self.pid)

    @property
    def described(self) -> str:
        """Process id and host name, for messages."""
        return f"process {self.pid} on {self.host.rpartition('.')[0]}"


def _host() -> str:
    """This host and its namespace of process ids: containers of one host may share its name."""
    try:
        namespace = "".join(filter(str.isdigit, os.readlink("/proc/self/ns/pid")))
    except OSError:
        namespace = "0"
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())[:64] + "." + namespace


def _started(pid: int) -> int:
    """The start time of a process of this host in clock ticks since boot; 0 if unknown, or if it is a zombie,
    which writes nothing any more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
