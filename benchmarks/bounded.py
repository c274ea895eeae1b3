"""Run a command for at most so long, and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_bounded(command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None) -> int | None:
    """The command's exit code; None where it was still running after `seconds` and was ended.

    `env` is added to this process's environment.
    """
    # A session of its own: what is ended is the command with all of its workers.
    process = subprocess.Popen(command, start_new_session=True, env={**os.environ, **(env or {})})
    started: list[int] = []
    try:
        return process.wait(seconds)
    except BaseException as reason:
        # Of its children those that were started here too have sessions of their own.
        started = descendants(process.pid)
        if isinstance(reason, subprocess.TimeoutExpired):
            return None
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def descendants(pid: int) -> list[int]:
    """The processes that `pid` started and that still run, and theirs."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it ended meanwhile
        return []
    return children + [each for child in children for each in descendants(child)]
