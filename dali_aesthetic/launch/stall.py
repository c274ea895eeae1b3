"""A run that makes no progress ends, with every thread's stack, instead of hanging for the night."""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from dali_aesthetic.overlap import every, stacks
from dali_aesthetic.stats import RunStats

_GRACE_SECONDS = 30.0


class _Watch:
    def __init__(self, stats: RunStats, timeout: float, file: TextIO) -> None:
        self._stats, self._timeout, self._file = stats, timeout, file
        self._seen, self._since = -1, 0.0

    def look(self) -> None:
        """Notes progress; without any for too long, ends the process."""
        if self._stats.progress != self._seen:
            self._seen, self._since = self._stats.progress, time.monotonic()
            # For a hang that holds the interpreter, where this thread would never get its turn.
            faulthandler.dump_traceback_later(self._timeout + _GRACE_SECONDS, exit=True, file=self._file)
        elif time.monotonic() - self._since >= self._timeout:
            self._end()

    def _end(self) -> None:
        self._file.write(
            f"{stacks()}\nstalled: no progress for {self._timeout:g} s after {self._stats.num_samples:,} "
            "samples; every thread's stack is above. Committed shards are kept: run the same command again "
            "to go on (--stall-timeout sets the seconds, 0 waits for ever)\n"
        )
        self._file.flush()
        os._exit(1)  # whatever hangs would also hang an orderly end


@contextmanager
def stall_guard(stats: RunStats, timeout: float) -> Iterator[None]:
    """Ends the process with exit code 1 where `stats` show no progress for `timeout` seconds; 0: never."""
    file = sys.__stderr__
    if timeout <= 0 or file is None:
        yield
        return
    watch = _Watch(stats, timeout, file)
    try:
        with every(min(1.0, timeout / 4), watch.look, "stall"):
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()
