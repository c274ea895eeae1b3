"""Python's garbage collector while the hot loop runs.

The libraries in use hold half a million objects that a full collection walks over, for a quarter of a second,
every thirty thousand samples; and hardly anything that the loop makes is ever part of a cycle.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

ALLOCATIONS = 50_000
"""New containers between two collections of the young ones; Python's own number is 700."""
_inside = 0
_before: tuple[tuple[int, int, int], int] = ((0, 0, 0), 0)


@contextmanager
def calm_collector() -> Iterator[None]:
    """Collects seldom, and only what is made within the block; afterwards everything is as it was.

    Cycles still go: a long block doesn't grow. It may be entered again while it runs.
    """
    global _inside, _before
    if _inside == 0:
        _before = (gc.get_threshold(), gc.get_freeze_count())
        gc.freeze()
        if _before[0][0] > 0:  # 0: somebody has turned collections off
            gc.set_threshold(max(ALLOCATIONS, _before[0][0]), *_before[0][1:])
    _inside += 1
    try:
        yield
    finally:
        _inside -= 1
        if _inside == 0:
            gc.set_threshold(*_before[0])
            if _before[1] == 0:  # what others froze stays frozen
                gc.unfreeze()
