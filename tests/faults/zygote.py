"""Starts the command line in no time, so that it can be killed by the dozen.

A process that has everything imported forks for each request on its standard input, a JSON line, and answers
with a JSON line. `{"run": [ARGUMENTS], "log": FILE, "faults": [NAMES], "configs": FOLDER, "environ": {}}`
gives a process number, `{"poll": PID}` an exit code, or null while it runs. The fork is the real command line
from there on.
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

import dali_aesthetic.display
import dali_aesthetic.launch.local  # noqa: F401
from dali_aesthetic.cli import main as command_line
from tests.faults.inject import install


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


def _poll(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _become_the_command(request: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, log, log)):
        os.dup2(descriptor, number)
    os.environ.update(request["environ"])
    open_clip.add_model_config(request["configs"])
    sys.argv = ["dali-aesthetic", *request["run"]]
    for name in request["faults"]:
        install(name)
    command_line()


if __name__ == "__main__":
    main()
