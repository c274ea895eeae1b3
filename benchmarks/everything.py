"""All parts of a benchmark run, each in a process of its own with its own time bound."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.bounded import run_bounded
from benchmarks.settings import Settings

BOUND_S = {
    "data": 60,
    "end-to-end": 340,
    "peers": 540,
    "feed": 270,
    "precision": 90,
    "ceilings": 60,
    "encoders": 150,
    "cold-start": 260,
    "ladder": 280,
    "kernels": 90,
    "stages": 90,
    "growth": 240,
    "host": 45,
}
"""Seconds each part may take on a GPU when quick; else ten times as many. In this order."""
IN_ALL = tuple(BOUND_S)
"""What describes one device: several of them (`scaling`) and loopback (`stores`) are not in it."""
_THEMES = {"ladder": "encoder"}
"""Parts whose result file has another name."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended: `done`, `resumed`, `cut off`, `failed` or `no time left`."""

    part: str
    how: str
    seconds: float


def run_all(
    settings: Settings,
    options: Sequence[str],
    minutes: float,
    resume: bool = False,
    parts: Sequence[str] = IN_ALL,
) -> list[Outcome]:
    """Each part in turn, with `options`, which say what `settings` do, for at most `minutes` together.

    A part that fails or is cut off leaves the rows it had, and the next goes on. With `resume` a part that
    has a complete result of today and of these settings is left out, and others go on with the rows that
    they have.
    """
    end = time.monotonic() + 60 * minutes
    outcomes = []
    for part in parts:
        left = end - time.monotonic()
        if resume and part != "data" and _complete(settings, _THEMES.get(part, part)):
            outcomes.append(Outcome(part, "resumed", 0.0))
        elif left < 5:
            outcomes.append(Outcome(part, "no time left", 0.0))
        else:
            bound = BOUND_S[part] * (1 if settings.quick and settings.on_gpu else 10)
            outcomes.append(_run(part, options, min(bound, left)))
    return outcomes


def _run(part: str, options: Sequence[str], bound_s: float) -> Outcome:
    print(f"== {part} (at most {bound_s:.0f} s)", flush=True)
    start = time.monotonic()
    code = run_bounded([sys.executable, "-m", "benchmarks", part, *options], bound_s)
    how = "cut off" if code is None else "failed" if code else "done"
    seconds = time.monotonic() - start
    print(f"== {part} {how} after {seconds:.0f} s", flush=True)
    return Outcome(part, how, seconds)


def _complete(settings: Settings, theme: str) -> bool:
    return bool(replace(settings, resume=True).record(theme).get("complete"))
