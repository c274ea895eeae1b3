"""Which process a file belongs to, and whether that process is still there."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TEXT = re.compile(r"(?P<host>[A-Za-z0-9._]+)-(?P<pid>\d+)-(?P<started>\d+)")


@dataclass(frozen=True, slots=True)
class Owner:
    """A process: its host, number and start time, which tells it from a later one with the same number."""

    host: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> Self:
        """This process."""
        return cls(_host(), os.getpid(), _started(os.getpid()))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """What `str()` made of an owner, or None."""
        match = _TEXT.fullmatch(text)
        return match and cls(match["host"], int(match["pid"]), int(match["started"]))

    def __str__(self) -> str:
        return f"{self.host}-{self.pid}-{self.started}"

    @property
    def is_here(self) -> bool:
        """Whether it is of this host, so that `is_alive` can know."""
        return self.host == _host()

    @property
    def is_alive(self) -> bool:
        """Whether this host runs it."""
        return _started(self.pid) == self.started and _exists(self.pid)

    @property
    def described(self) -> str:
        """For messages: process number and host name."""
        return f"process {self.pid} on {self.host.rpartition('.')[0]}"


def _host() -> str:
    """This host, and its namespace of process numbers: containers of one host may share its name."""
    try:
        namespace = "".join(filter(str.isdigit, os.readlink("/proc/self/ns/pid")))
    except OSError:
        namespace = "0"
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())[:64] + "." + namespace


def _started(pid: int) -> int:
    """When a process of this host started, in clock ticks since boot; 0 where that can't be known.

    One that has ended and waits for its parent to look (a zombie) writes nothing any more: it isn't known.
    """
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
