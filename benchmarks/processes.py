"""Commands and measurements in processes of their own, each for at most so many seconds.

A measurement gets its own process where something has to be set before the first CUDA call, or where streams,
graphs and memory that it leaves behind would affect the next one. Its rows go into the parent's record.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.results import Record
from benchmarks.settings import Settings

Measure = Callable[..., None]
"""Adds rows to the record; takes the settings and any number of strings as well."""
_ENDED = "ended"


def run_bounded(command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None) -> int | None:
    """Run a command and return its exit code; None if it was killed because it ran for over `seconds`.

    Nothing that the command started is left running. `env` is added to the environment.
    """
    # A session of its own, so that the command can be killed with all of its workers.
    process = subprocess.Popen(command, start_new_session=True, env={**os.environ, **(env or {})})
    started: list[int] = []
    try:
        return process.wait(seconds)
    except BaseException as reason:
        # Commands that it ran through this function have sessions of their own.
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
    """All processes below `pid` that still run."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return []
    return children + [each for child in children for each in descendants(child)]


def in_child(
    measure: Measure,
    record: Record,
    settings: Settings,
    title: str,
    *words: str,
    bound_s: float,
    env: Mapping[str, str] | None = None,
) -> bool:
    """Run `measure`, a function of a module, in a new process for at most `bound_s`; whether it ended.

    If it fails or is killed, the record has `title` among what was skipped, with the reason. A failure counts
    as an end, and a resumed record does not repeat what ended. `env` is added to the environment.
    """
    ended = record.get(_ENDED) or []
    if title in ended:
        return True
    record.note(_ENDED, ended)  # writes the file, which the child resumes
    name = f"{measure.__module__}:{measure.__name__}"
    question = replace(settings, resume=True).as_json()
    # With its date: a run that began before midnight keeps its file.
    file = (record.theme, record.date)
    command = [sys.executable, "-m", "benchmarks.processes", name, question, *file, title, *words]
    code = run_bounded(command, bound_s, env)
    record.reload()
    if code is None:
        if record.row(title) is None:
            record.skip(title, f"not done after {bound_s:.0f} s")
        return False
    if code and not record.has(title):
        record.skip(title, f"ended with exit code {code}")
    record.note(_ENDED, [*ended, title])
    return True


def main(name: str, question: str, theme: str, date: str, title: str, *words: str) -> int:
    """Run a measurement in the child; returns its exit code."""
    settings = Settings.from_json(question)
    record = settings.record(theme, date)
    module, function = name.split(":")
    try:
        getattr(importlib.import_module(module), function)(record, settings, *words)
    except Exception as error:  # one that fails must not end the others
        traceback.print_exc()
        # The row of this title was measured before the failure, and stays.
        skipped = f"{title}: what comes after it" if record.row(title) else title
        record.skip(skipped, f"{type(error).__name__}: {error}".splitlines()[0][:300])
        return 1
    return 0


if __name__ == "__main__":
    _code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # The rows are on disk: no thread or destructor of a library may delay the exit.
    os._exit(_code)
