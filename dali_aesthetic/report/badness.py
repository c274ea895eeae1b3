"""What could not be scored: how many samples by reason, and a few of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dali_aesthetic.report.rows import ShardScores
from dali_aesthetic.types import Status

EXAMPLES = 5
NO_NUMBER = "no score"
_MAX_TEXT = 300


@dataclass(frozen=True, slots=True)
class Example:
    """One sample that could not be scored."""

    key: str
    message: str
    source: str


class BadInputs:
    """Counts samples by status and takes the first few of each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[Example]] = {}

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, shard: ShardScores, table: pa.Table, scored_R: np.ndarray) -> int:
        """Counts a shard's samples that have no score, and returns their number."""
        rows = np.flatnonzero(~scored_R)
        if not len(rows):
            return 0
        statuses = table.column("status").take(pa.array(rows)).cast(pa.string()).to_pylist()
        reasons = [NO_NUMBER if status == Status.OK.value else status for status in statuses]
        self.counts.update(reasons)
        wanted: dict[int, str] = {}
        for row, reason in zip(rows.tolist(), reasons, strict=True):
            taken = len(self.examples.setdefault(reason, [])) + list(wanted.values()).count(reason)
            if taken < EXAMPLES:
                wanted[row] = reason
        self._take(shard, wanted)
        return len(rows)

    def _take(self, shard: ShardScores, wanted: dict[int, str]) -> None:
        if not wanted:
            return
        found = shard.read(["key", "error_message", "source_shard"], list(wanted)).to_pylist()
        for row, reason in zip(found, wanted.values(), strict=True):
            texts = (row["key"], row["error_message"], row["source_shard"])
            self.examples[reason].append(Example(*(_short(text) for text in texts)))


def _short(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
