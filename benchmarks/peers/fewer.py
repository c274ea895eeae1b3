"""Many processes on one GPU, and half of them where it takes no more.

A driver can refuse a process its context, or memory, long before the GPU's memory is full: what was seen of
that is noted in peers_h100_2026-11-27. What is refused and when depends on the machine, so it is tried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_OVERFLOWS = ("CUDA out of memory", "CUDA allocation failed", "CUDA error: out of memory")


def with_fewer(measure: Callable[[int], T], count: int) -> T:
    """`measure(count)`; where that runs out of the GPU's memory, the same with half of them, once."""
    try:
        return measure(count)
    except Exception as error:
        if count == 1 or not any(words in str(error) for words in _OVERFLOWS):
            raise
    return measure(count // 2)
