"""One pass over the scores of an output: all numbers of the page, in bounded memory."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dali_aesthetic.layout import NotARun, cut_of, read_record, where_of
from dali_aesthetic.predicate import Bound, Predicate
from dali_aesthetic.report.distribution import (
    Distribution,
    Grid,
    Groups,
    frequent_values,
    make_grid,
    shortened,
)
from dali_aesthetic.report.pictures import Picks
from dali_aesthetic.report.rows import (
    FIRST_HEAD,
    ShardScores,
    committed_shards,
    head_columns,
    recorded_heads,
    score_range,
    stored_columns,
)
from dali_aesthetic.shards.oddities import WarningCounts
from dali_aesthetic.threshold import DEFAULT_PRESET, PRESETS, bounds_text
from dali_aesthetic.types import Status

EXAMPLES = 5
NO_NUMBER = "no score"
_MAX_TEXT = 300
ODD_FROM = 3.5
"""The robust z-score from which a shard is an outlier (the rule of Iglewicz and Hoaglin)."""
FEWEST_SHARDS = 5
"""With fewer shards there are no outliers."""
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, slots=True)
class Survey:
    """The numbers of the page. `heads` holds a distribution for each score column, the deciding head's first.

    `cut` is the lower bound of the run on the raw scale. For scores alone it is the default preset's where
    that lies within them, else their middle. `upper` is the inclusive upper bound, None if there was none.
    With a condition `where`, the distributions, pictures and groups are of the samples for which it holds.
    """

    record: dict[str, Any]
    cut: float
    upper: float | None
    shards: list[ShardFigures]
    heads: dict[str, Distribution]
    bad: BadInputs
    picks: Picks
    groups: Groups | None
    where: str = ""
    funnel: Funnel | None = None
    warnings: WarningCounts = field(default_factory=WarningCounts)

    @property
    def first(self) -> Distribution:
        return self.heads[FIRST_HEAD]

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def num_kept(self) -> int:
        return sum(shard.num_kept for shard in self.shards)


def survey(output: Path, by: str | None = None, where: str | None = None) -> Survey:
    """Reads the scores of `output`, and the column `by`, for whose values keep rates are broken down.

    `where` is a condition on the samples; None is the run's own. Raises `NothingToReport` where there are no
    scores, or no such column, and ValueError for what is no condition on them.
    """
    shards = committed_shards(output)
    record: dict[str, Any] = {}
    with contextlib.suppress(NotARun, OSError):
        record = read_record(output)
    where = where_of(record) if where is None else where
    condition = Predicate(where, stored_columns(shards)) if where else None
    columns = head_columns(shards, recorded_heads(record))
    ranges = {column: score_range(shards, column) or (0.0, 10.0) for column in columns}
    cut, upper = run_cut(record, ranges[FIRST_HEAD])
    grids = _grids(ranges, [cut] if upper is None else [cut, upper])
    found = Survey(
        record=record,
        cut=cut,
        upper=upper,
        shards=[],
        heads={column: Distribution(grid) for column, grid in grids.items()},
        bad=BadInputs(),
        picks=Picks(grids[FIRST_HEAD], cut),
        groups=Groups(by, frequent_values(shards, by), grids[FIRST_HEAD]) if by else None,
        where=where,
        funnel=Funnel(condition, cut_of(record), shards) if condition else None,
    )
    for shard in shards:
        _add(found, shard, list(grids), by)
        found.warnings.add(shard.name, shard.stats.get("warnings", ()))
    return found


def run_cut(record: dict[str, Any], scores: tuple[float, float]) -> tuple[float, float | None]:
    """The run's bounds on the raw scale. Where the record has none, one within the lowest and highest of the
    `scores`; where a condition alone decided, one below them."""
    default, (low, high) = PRESETS[DEFAULT_PRESET].raw, scores
    if found := cut_of(record):
        lower = found[0] if found[0] > -math.inf else math.floor(10 * max(low, -1e6)) / 10
        return lower, found[1] if found[1] < math.inf else None
    # Rounded to what the page's steps can say.
    return (default if low <= default <= high else float(f"{(low + high) / 2:.2g}")), None


def _grids(ranges: dict[str, tuple[float, float]], cuts: list[float]) -> dict[str, Grid]:
    grids = {}
    for column, (low, high) in ranges.items():
        named = [*cuts, *(preset.raw for preset in PRESETS.values())] if column == FIRST_HEAD else []
        grids[column] = make_grid(low, high, named)
    return grids


def _add(found: Survey, shard: ShardScores, columns: list[str], by: str | None) -> None:
    read = found.funnel.condition.columns if found.funnel else []
    table = shard.read(list(dict.fromkeys([*columns, "status", "kept", *([by] if by else []), *read])))
    scores_R = _floats(table.column(FIRST_HEAD))
    kept_R = table.column("kept").cast(pa.bool_()).fill_null(False).to_numpy()
    scored_R = ~np.isnan(scores_R)
    filtered_before = found.bad.num_filtered
    found.bad.add(shard, table, scored_R)
    scores = scores_R[scored_R]
    holds_R = np.ones(len(table), np.bool_)
    if found.funnel is not None:
        holds_R = found.funnel.add(shard, table, scores_R, kept_R)
    for column in columns:
        found.heads[column].add(_floats(table.column(column))[holds_R])
    fitting_R = np.where(holds_R, scores_R, np.float32(np.nan))
    found.picks.add(shard, fitting_R, kept_R)
    if found.groups is not None:
        found.groups.add(table, fitting_R)
    figures = ShardFigures(
        name=shard.name,
        source=str(shard.stats.get("source", "")),
        num_samples=len(scores_R),
        num_filtered=found.bad.num_filtered - filtered_before,
        num_scored=len(scores),
        num_kept=int(kept_R.sum()),
        mean=float(scores.mean(dtype=np.float64)) if len(scores) else math.nan,
        spread=float(scores.std(dtype=np.float64, ddof=1)) if len(scores) > 1 else 0.0,
        damage=str(shard.stats.get("damage", "")),
    )
    found.shards.append(figures)


def _floats(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """The column as float32, NaN where null."""
    values: npt.NDArray[np.float32] = column.cast(pa.float32()).to_numpy(zero_copy_only=False)
    return np.where(np.isnan(values), np.float32(np.nan), values).astype(np.float32, copy=False)


class Funnel:
    """Counts the scored samples that each part of a condition removes, after the run's bounds if it had any.

    `cut` holds these bounds, inclusive. Parts that bound a number but the score have the distribution of this
    number, and the samples nearest to the bound.
    """

    def __init__(
        self, condition: Predicate, cut: tuple[float, float] | None, shards: Sequence[ShardScores]
    ) -> None:
        self.condition, self._cut = condition, cut if cut and cut != (-math.inf, math.inf) else None
        self.parts = [*([bounds_text(*self._cut)] if self._cut else []), *condition.conjuncts]
        self._removed = np.zeros((2, len(self.parts)), np.int64)
        self.num_scored = 0
        self.bounds: list[tuple[Bound, Distribution, Picks]] = []
        for bound, (low, high) in zip(condition.bounds, _ranges(condition, shards), strict=True):
            grid = make_grid(min(low, bound.cut), max(high, bound.cut), [bound.cut])
            self.bounds.append((bound, Distribution(grid), Picks(None, bound.cut)))

    def add(
        self,
        shard: ShardScores,
        table: pa.Table,
        scores_R: npt.NDArray[np.float32],
        kept_R: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.bool_]:
        """Counts the rows of a shard; returns where the condition holds."""
        scored_R = ~np.isnan(scores_R)
        for (bound, distribution, picks), values_R in zip(
            self.bounds, self.condition.values(table), strict=True
        ):
            if bound.value != FIRST_HEAD:
                known_R = np.where(scored_R, values_R, np.float32(np.nan))
                distribution.add(known_R)
                picks.add(shard, known_R, kept_R, scores_R)
        passes_RC = holds_RC = self.condition.passes(table)
        if self._cut:
            within_R = (scores_R >= np.float32(self._cut[0])) & (scores_R <= np.float32(self._cut[1]))
            passes_RC = np.column_stack([within_R, holds_RC])
        self._removed += Predicate.removed(passes_RC[scored_R])
        self.num_scored += int(scored_R.sum())
        return np.asarray(holds_RC.all(axis=1), np.bool_)

    def rows(self) -> list[tuple[str, int, int, int]]:
        """Each part, the samples that it removes alone and in order, and those that are left then."""
        alone, in_order = self._removed.tolist()
        left = (self.num_scored - self._removed[1].cumsum()).tolist()
        return list(zip(self.parts, alone, in_order, left, strict=True))


def _ranges(condition: Predicate, shards: Sequence[ShardScores]) -> list[tuple[float, float]]:
    """The lowest and highest finite value of each bound."""
    lows, highs = (np.full(len(condition.bounds), sign * np.inf) for sign in (1, -1))
    for shard in shards if condition.bounds else ():
        for place, values_R in enumerate(condition.values(shard.read(condition.columns))):
            finite = values_R[np.isfinite(values_R)]
            lows[place] = min(lows[place], finite.min(initial=np.inf))
            highs[place] = max(highs[place], finite.max(initial=-np.inf))
    return list(zip(lows.tolist(), highs.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Example:
    """A sample that could not be scored."""

    key: str
    message: str
    source: str


class BadInputs:
    """Counts samples without a score by reason, and keeps the first few of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[Example]] = {}
        self.num_filtered = 0
        """Samples that `--prefilter` left out, which are not bad."""

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, shard: ShardScores, table: pa.Table, scored_R: np.ndarray) -> None:
        """Counts a shard's samples that have no score."""
        rows = np.flatnonzero(~scored_R)
        if not len(rows):
            return
        statuses = table.column("status").take(pa.array(rows)).cast(pa.string()).to_pylist()
        self.num_filtered += (filtered := statuses.count(Status.FILTERED.value))
        if filtered:
            good = [status != Status.FILTERED.value for status in statuses]
            rows, statuses = rows[good], list(compress(statuses, good))
        reasons = [NO_NUMBER if status == Status.OK.value else status for status in statuses]
        self.counts.update(reasons)
        wanted: dict[int, str] = {}
        for row, reason in zip(rows.tolist(), reasons, strict=True):
            taken = len(self.examples.setdefault(reason, [])) + list(wanted.values()).count(reason)
            if taken < EXAMPLES:
                wanted[row] = reason
        if not wanted:
            return
        found = shard.read(["key", "error_message", "source_shard"], list(wanted)).to_pylist()
        for row, reason in zip(found, wanted.values(), strict=True):
            texts = (row["key"], row["error_message"], row["source_shard"])
            self.examples[reason].append(Example(*(shortened(text or "", _MAX_TEXT) for text in texts)))


@dataclass(frozen=True, slots=True)
class ShardFigures:
    """Sums of one shard; `spread` is the standard deviation of its scores (0 for fewer than two)."""

    name: str
    source: str
    num_samples: int
    num_scored: int
    num_kept: int
    mean: float
    spread: float
    damage: str = ""
    num_filtered: int = 0

    @property
    def keep_rate(self) -> float:
        return self.num_kept / self.num_scored if self.num_scored else math.nan

    @property
    def bad_share(self) -> float:
        looked_at = self.num_samples - self.num_filtered
        return 1 - self.num_scored / looked_at if looked_at else math.nan


@dataclass(frozen=True, slots=True)
class Outlier:
    """A shard, the figure that is odd, and its distance from the median in robust standard deviations."""

    shard: ShardFigures
    what: str
    value: float
    typical: float
    sigmas: float


def find_outliers(shards: Sequence[ShardFigures], most: int = 10) -> list[Outlier]:
    """At most `most` outliers, the farthest first, each by its oddest figure.

    A figure is odd if it is more than `ODD_FROM` scales from the median. The scale is 1.4826 times the median
    absolute deviation, and at least the sampling error of the shard.
    """
    if len(shards) < FEWEST_SHARDS:
        return []
    figures = [(s.mean, s.keep_rate, s.bad_share, s.spread, s.num_scored, s.num_samples) for s in shards]
    means, keep_rates, bad_shares, spreads, scored, samples = np.array(figures).T
    measures = (
        ("mean score", means, scored),
        ("keep rate", keep_rates, scored),
        ("bad share", bad_shares, samples),
    )
    oddest: dict[str, Outlier] = {}
    for what, values, counts in measures:
        if np.isnan(values).all():
            continue
        middle, sizes = float(np.nanmedian(values)), np.maximum(counts, 1)
        # The error of a share is that of the median one, and at least one sample.
        share_errors = np.maximum(np.sqrt(np.abs(middle * (1 - middle)) / sizes), 1 / sizes)
        errors = spreads / np.sqrt(sizes) if what == "mean score" else share_errors
        crowd = _MAD_TO_SIGMA * float(np.nanmedian(np.abs(values - middle)))
        sigmas = (values - middle) / np.maximum(np.maximum(crowd, errors), 1e-9)
        for i in np.flatnonzero(np.abs(sigmas) > ODD_FROM).tolist():
            outlier = Outlier(shards[i], what, float(values[i]), middle, float(sigmas[i]))
            name = outlier.shard.name
            if name not in oddest or abs(outlier.sigmas) > abs(oddest[name].sigmas):
                oddest[name] = outlier
    return sorted(oddest.values(), key=lambda outlier: -abs(outlier.sigmas))[:most]
