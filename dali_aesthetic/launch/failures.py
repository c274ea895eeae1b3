"""Failed workers, on one node and in a cluster alike: which shards to give up, which errors end the run."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from dali_aesthetic.config import ConfigError
from dali_aesthetic.types import Shard, ShardReport

MOST_DEATHS = 3
"""A shard that was open in so many workers when they died is given up."""
_OF_ONE_PROCESS = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)


def given_up(shard: Shard, deaths: int, why: str) -> ShardReport | None:
    """The report of a shard that was open in `deaths` workers when they died, the last one because of `why`.

    None while it gets another try.
    """
    if deaths < MOST_DEATHS:
        return None
    error = f"a worker died over it {deaths} times; the last one {why}"
    return ShardReport(name=shard.name, source=shard.source, error=error)


def is_fatal(error: BaseException) -> bool:
    """Whether every other worker would meet this error of a running worker, such as a full disk.

    A lost connection passes; too little memory or too many open files are the process's own.
    """
    passing = isinstance(error, ConnectionError | TimeoutError)
    return isinstance(error, OSError) and not passing and error.errno not in _OF_ONE_PROCESS


def check_same_run(worker: str, ours: Mapping[str, Any], first: Mapping[str, Any], fix: str) -> None:
    """Raises ConfigError with the `fix` where a `worker`'s identity in `run.json` isn't the first one's.

    On a GPU of another kind, for example, it would give other scores.
    """
    if other := sorted(name for name in ours if ours[name] != first.get(name)):
        listed = ", ".join(f"{name}: {ours[name]!r}, not {first.get(name)!r}" for name in other)
        raise ConfigError(f"{worker} would run with another {listed}: {fix}")
