"""How much memory there is, and how much of it encoded images may take."""

from __future__ import annotations

import os
from pathlib import Path

_GIB = 1 << 30
_DEFAULT_SHARE, _MOST_BY_DEFAULT = 4, 16 * _GIB
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int:
    """The machine's memory, or its container's share."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *map(_limit, _CGROUP_LIMITS)])


def budget_bytes(budget_gb: float | None) -> int:
    """What `memory_budget_gb` means; None is a quarter of the memory and at most 16 GiB."""
    if budget_gb is not None:
        return int(budget_gb * _GIB)
    return min(memory_bytes() // _DEFAULT_SHARE, _MOST_BY_DEFAULT)


def _limit(path: str) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such cgroup, or "max"
        return 1 << 62
