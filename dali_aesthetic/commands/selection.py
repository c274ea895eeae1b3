"""The keys of the samples within a threshold, from stored scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dali_aesthetic.config import Config
from dali_aesthetic.write.output import committed_names
from dali_aesthetic.write.stored import read_identity, read_keys, read_raw_scores


def selected(scores: str, fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Source shard and key of each sample within the threshold of `fields`, shard by shard in name order.

    Raises `ConfigError` for a threshold that can't be, `ScoresMismatch` for a folder without scores.
    """
    read_identity(scores)
    threshold = Config.build({"input": "-", "output": "-", "threshold": fields}).threshold
    if threshold.top is not None:
        threshold = threshold.resolve_top(read_raw_scores(scores))
    for name in sorted(committed_names(scores)):
        sources, keys, raw_R = read_keys(scores, name)
        for row in np.flatnonzero(threshold.keep(raw_R)).tolist():
            yield sources[row], keys[row]
