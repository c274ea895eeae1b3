"""Standard streams: closed or full ones end nothing, and what decoder libraries write is counted, not shown.

libpng, libjpeg, libtiff and nvImageCodec write a line for each odd image to file descriptor 2, without the
image's name. Its row has the reason, so those lines are kept from the terminal. A helper process reads them
(this file, as a script: standard library only), because it outlives a crash: it then prints the last ones.
"""

from __future__ import annotations

import faulthandler
import io
import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_ASK, _END = b"\0?\n", b"\0.\n"
_LAST_LINES, _LINE_BYTES = 20, 1 << 16
_PATIENCE_SECONDS = 5.0


class _StandardError(io.RawIOBase):
    """The stream of Python's own messages. It drops what can't be written, and `descriptor` may change."""

    descriptor = 2

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def write(self, data: Any) -> int:
        try:
            return os.write(self.descriptor, data)
        except OSError:
            return len(data)


def keep_streams() -> None:
    """Makes sure that a closed or full standard error, or a closed standard output, ends nothing.

    A closed stream is opened on the null device: else the next file, a tar, would get its number, and a
    library's message would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is sys.__stderr__:
        stream = io.BufferedWriter(_StandardError())
        encoding = sys.stderr.encoding if sys.stderr else None
        sys.stderr = io.TextIOWrapper(stream, encoding, "backslashreplace", line_buffering=True)
        sys.__stderr__ = sys.stderr  # type: ignore[misc]


@contextmanager
def quiet_libraries(shown: bool = False) -> Iterator[Callable[[], int]]:
    """Keeps from standard error what libraries write to it; gives a function that counts lines since its last
    call.

    Python's own messages and those of `faulthandler` still arrive, at once. Where the process ends within the
    block, the last lines are printed. Nothing is kept back where `shown`, and in a process without
    `keep_streams`: its standard error is its program's.
    """
    stream = getattr(getattr(sys.stderr, "buffer", None), "raw", None)
    helper = None
    if isinstance(stream, _StandardError) and stream.descriptor == 2 and not shown:
        with suppress(OSError):  # too little memory for a process: the lines are shown
            helper = _start_helper()
    if helper is None:
        yield lambda: 0
        return
    assert isinstance(stream, _StandardError)
    assert helper.stdin is not None
    assert helper.stdout is not None
    replies = helper.stdout
    before = os.dup(2)
    os.dup2(helper.stdin.fileno(), 2)
    helper.stdin.close()
    _point(stream, before)
    try:
        yield lambda: _asked(replies)
    finally:
        with suppress(OSError):
            os.write(2, _END)
        os.dup2(before, 2)
        _point(stream, 2)
        os.close(before)
        replies.close()
        with suppress(subprocess.TimeoutExpired):
            helper.wait(_PATIENCE_SECONDS)


def _start_helper() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", __file__]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)


def _point(stream: _StandardError, descriptor: int) -> None:
    """Sends Python's messages and a crash's stacks to another descriptor."""
    sys.stderr.flush()
    stream.descriptor = descriptor
    if faulthandler.is_enabled():
        faulthandler.enable(sys.stderr)


def _asked(replies: Any) -> int:
    """The helper's number of lines, or 0 where it is gone."""
    with suppress(OSError, ValueError):
        os.write(2, _ASK)
        if select.select([replies], [], [], _PATIENCE_SECONDS)[0]:
            return int(replies.readline())
    return 0


def _count_lines() -> None:
    """The helper: counts the lines of standard input until `_END`, and prints the last at any other end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a job's end reaches all of its processes
    last: deque[bytes] = deque(maxlen=_LAST_LINES)
    count = 0
    while line := sys.stdin.buffer.readline(_LINE_BYTES):
        order = next((order for order in (_ASK, _END) if line.endswith(order)), b"")
        if line := line.removesuffix(order):
            count += 1
            last.append(line)
        if order == _END:
            return
        if order == _ASK:
            print(count, flush=True)
            count = 0
    if last:
        sys.stderr.buffer.write(b"the last lines that libraries wrote:\n" + b"".join(last))


if __name__ == "__main__":
    _count_lines()
