"""What a launcher hands back, and how it lets others look on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from dali_aesthetic.stats import RunStats
from dali_aesthetic.threshold import Threshold

Watch = Callable[[RunStats, int], AbstractContextManager[object]]
"""Is entered for the length of the loop with its live counters and the number of shards to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run did. `num_skipped` shards were committed by an earlier run of the same command.

    `threshold` is the one that was applied, a share of the samples resolved to its raw score.
    """

    stats: RunStats
    num_shards: int
    num_skipped: int
    threshold: Threshold

    @property
    def exit_code(self) -> int:
        """0 where every shard is committed and at least one image was ever scored, else 1.

        A task of a job with more tasks than shards has none and is complete.
        """
        scored_nothing = self.num_shards > 0 and self.stats.num_scored == 0 and self.num_skipped == 0
        return 1 if self.stats.failed or scored_nothing else 0


def unwatched(stats: RunStats, num_shards: int) -> AbstractContextManager[object]:
    """The watch of a run that nobody looks at."""
    return nullcontext()
