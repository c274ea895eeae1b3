"""One pass over the scores of an output: everything the page says in numbers, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dali_aesthetic.report.badness import BadInputs
from dali_aesthetic.report.distribution import Distribution
from dali_aesthetic.report.grid import Grid, make_grid
from dali_aesthetic.report.groups import Groups, frequent_values
from dali_aesthetic.report.outliers import ShardFigures
from dali_aesthetic.report.picks import Picks
from dali_aesthetic.report.rows import (
    FIRST_HEAD,
    ShardScores,
    committed_shards,
    head_columns,
    recorded_heads,
    run_record,
    score_range,
)
from dali_aesthetic.threshold import DEFAULT_PRESET, PRESETS


@dataclass(frozen=True, slots=True)
class Survey:
    """`heads` are the score columns' distributions, the deciding head's first.

    `cut` is the run's on the raw scale, or the default preset's where it made scores only; `upper` is its
    inclusive upper bound, None where it had none.
    """

    record: dict[str, Any]
    cut: float
    upper: float | None
    shards: list[ShardFigures]
    heads: dict[str, Distribution]
    bad: BadInputs
    picks: Picks
    groups: Groups | None

    @property
    def first(self) -> Distribution:
        return self.heads[FIRST_HEAD]

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def num_kept(self) -> int:
        return sum(shard.num_kept for shard in self.shards)


def survey(output: Path, by: str | None = None) -> Survey:
    """Reads the scores below `output`, and `by`, a column to tell keep rates apart.

    Raises `NothingToReport` where there are none, or no such column.
    """
    shards = committed_shards(output)
    record = run_record(output)
    cut = run_cut(record)
    upper = _number(record, "max_raw")
    columns = head_columns(shards, recorded_heads(record))
    grids = _grids(shards, columns, [cut] if upper is None else [cut, upper])
    found = Survey(
        record=record,
        cut=cut,
        upper=upper,
        shards=[],
        heads={column: Distribution(grid) for column, grid in grids.items()},
        bad=BadInputs(),
        picks=Picks(grids[FIRST_HEAD], cut),
        groups=Groups(by, frequent_values(shards, by), grids[FIRST_HEAD]) if by else None,
    )
    for shard in shards:
        _add(found, shard, list(grids), by)
    return found


def run_cut(record: dict[str, Any]) -> float:
    """The run's own threshold on the raw scale; the default preset's where the record does not tell."""
    cut = _number(record, "min_raw")
    return PRESETS[DEFAULT_PRESET].raw if cut is None else cut


def _number(record: dict[str, Any], name: str) -> float | None:
    value = record.get("identity", {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def _grids(shards: Sequence[ShardScores], columns: Sequence[str], cuts: list[float]) -> dict[str, Grid]:
    grids = {}
    for column in columns:
        low, high = score_range(shards, column) or (0.0, 10.0)
        named = [*cuts, *(preset.raw for preset in PRESETS.values())] if column == FIRST_HEAD else []
        grids[column] = make_grid(low, high, named)
    return grids


def _add(found: Survey, shard: ShardScores, columns: list[str], by: str | None) -> None:
    table = shard.read(list(dict.fromkeys([*columns, "status", "kept", *([by] if by else [])])))
    scores_R = _floats(table.column(FIRST_HEAD))
    kept_R = table.column("kept").cast(pa.bool_()).fill_null(False).to_numpy()
    for column in columns:
        found.heads[column].add(_floats(table.column(column)))
    found.picks.add(shard, scores_R, kept_R)
    if found.groups is not None:
        found.groups.add(table, scores_R)
    scored_R = ~np.isnan(scores_R)
    num_bad = found.bad.add(shard, table, scored_R)
    found.shards.append(_figures(shard, scores_R[scored_R], len(scores_R) - num_bad, num_bad, kept_R))


def _figures(
    shard: ShardScores,
    scores: npt.NDArray[np.float32],
    num_scored: int,
    num_bad: int,
    kept_R: npt.NDArray[np.bool_],
) -> ShardFigures:
    return ShardFigures(
        name=shard.name,
        source=str(shard.stats.get("source", "")),
        num_samples=num_scored + num_bad,
        num_scored=num_scored,
        num_kept=int(kept_R.sum()),
        mean=float(scores.mean(dtype=np.float64)) if num_scored else float("nan"),
        spread=float(scores.std(dtype=np.float64, ddof=1)) if num_scored > 1 else 0.0,
        damage=str(shard.stats.get("damage", "")),
    )


def _floats(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """As float32, NaN where null."""
    values: npt.NDArray[np.float32] = column.cast(pa.float32()).to_numpy(zero_copy_only=False)
    return np.where(np.isnan(values), np.float32(np.nan), values).astype(np.float32, copy=False)
