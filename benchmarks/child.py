"""One measurement in a process of its own, whose rows go into the record of the process that asked for it.

Some of it has to be set before the first CUDA call, some leaves streams, graphs and memory behind that the
next measurement would feel.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace

from benchmarks.bounded import run_bounded
from benchmarks.record import Record
from benchmarks.settings import Settings

Measure = Callable[..., None]
"""Takes the record, the settings and any number of words, and adds rows."""
_ENDED = "ended"


def in_child(
    measure: Measure,
    record: Record,
    settings: Settings,
    title: str,
    *words: str,
    bound_s: float,
    env: Mapping[str, str] | None = None,
) -> bool:
    """`measure`, a function of a module, in a new process for at most `bound_s`; whether it came to its end.

    Where it fails or takes longer, the record says so under `title`. `env` is added to the environment. In a
    resumed record what came to its end is not done again.
    """
    ended = record.get(_ENDED) or []
    if title in ended:
        return True
    record.note(_ENDED, ended)  # the file must be there for the child to go on with
    name = f"{measure.__module__}:{measure.__name__}"
    question = replace(settings, resume=True).as_json()
    # Its date too: a run that began before midnight goes on in its own file.
    file = (record.theme, record.date)
    command = [sys.executable, "-m", "benchmarks.child", name, question, *file, title, *words]
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
    """The child's side; its exit code."""
    settings = Settings.from_json(question)
    record = settings.record(theme, date)
    module, function = name.split(":")
    try:
        getattr(importlib.import_module(module), function)(record, settings, *words)
    except Exception as error:  # whatever it is, the other measurements go on
        traceback.print_exc()
        # A row that is there was measured: the failure has a name of its own then.
        skipped = f"{title}: what comes after it" if record.row(title) else title
        record.skip(skipped, f"{type(error).__name__}: {error}".splitlines()[0][:300])
        return 1
    return 0


if __name__ == "__main__":
    _code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # The rows are on disk: no library's thread or destructor may hold up the end.
    os._exit(_code)
