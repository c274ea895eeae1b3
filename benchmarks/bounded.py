"""Run a command for at most so long, and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence


def run_bounded(command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None) -> int | None:
    """The command's exit code; None where it was still running after `seconds` and was ended.

    `env` is added to this process's environment.
    """
    # A session of its own: what is ended is the command with all of its workers.
    process = subprocess.Popen(command, start_new_session=True, env={**os.environ, **(env or {})})
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
