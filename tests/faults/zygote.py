"""Forks the command line from a warm process, so that tests can start and kill it dozens of times.

A process that has everything imported forks for each request on its standard input, a JSON line, and answers
with a JSON line. `{"run": [ARGUMENTS], "log": FILE, "faults": [NAMES], "configs": FOLDER, "environ": {}}`
gives a process number, `{"poll": PID}` an exit code and the peak of resident memory in MB, or null while it
runs. The fork is the real command line from there on.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from typing import Any

import nvidia.dali.fn  # noqa: F401  imported here so that no run has to
import open_clip
import torch  # noqa: F401

from dali_aesthetic.cli import main as command_line
from tests.faults.inject import install

CONFIGS, WORKER_FAULTS = "DALI_AESTHETIC_TEST_CONFIGS", "DALI_AESTHETIC_TEST_WORKER_FAULTS"
"""How a worker process, which imports this file as the main module of its launcher, gets the tiny encoder and
faults of its own."""


def main() -> None:
    """Serves requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # saves each run the seconds that looking through all imported modules takes at its end
    _say("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            _say(_poll(request["poll"]))
        elif pid := os.fork():
            _say(pid)
        else:
            return _become_the_command(request)
    return None


def _say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def _poll(pid: int) -> tuple[int, float] | None:
    ended, status, usage = os.wait4(pid, os.WNOHANG)
    return (os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024) if ended else None


def _become_the_command(request: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, log, log)):
        os.dup2(descriptor, number)
    os.environ.update(request["environ"])
    open_clip.add_model_config(request["configs"])
    os.environ[CONFIGS], os.environ[WORKER_FAULTS] = request["configs"], " ".join(request["worker_faults"])
    sys.argv = ["dali-aesthetic", *request["run"]]
    for name in request["faults"]:
        install(name)
    command_line()


def _become_a_worker() -> None:
    open_clip.add_model_config(os.environ[CONFIGS])
    for name in os.environ[WORKER_FAULTS].split():
        install(name)


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":
    _become_a_worker()
