"""The order of a run, the same for every engine: plan, claim, prepare, open, work, result.

An engine does the work: this process (`run.py`), processes of this node (`node/`), actors of a cluster
(`cluster/`), or the sink alone, fed with stored scores (`filter.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.launch.slurm import ALONE, Task
from dali_aesthetic.layout import IDENTITY
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.stats import RunStats, Tally, tally_of
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.timing import read_speed
from dali_aesthetic.types import Shard, Status
from dali_aesthetic.write.lock import claim
from dali_aesthetic.write.output import clean_leftovers, earlier_reports, open_output

Watch = Callable[[RunStats, int], AbstractContextManager[object]]
"""Entered for the length of the work, with its live counters and the number of shards to do."""


_LOG = logging.getLogger(__name__)
_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An engine that is ready.

    `config` has the model's precision and a share's threshold resolved; `record` is what `run.json` holds.
    `work` commits or gives up every shard that it is given, counts along, and stops the clock.
    """

    config: Config
    record: dict[str, Any]
    work: Callable[[Sequence[Shard], RunStats], None]


Engine = Callable[[Config, Sequence[Shard], Task], AbstractContextManager[Prepared]]
"""Prepares for the planned shards under a claimed output; what it started has ended when the block has."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunResult:
    """The result of a run. `num_skipped` shards were committed by an earlier run of the same command.

    `threshold` is the one that was applied, a share of the samples resolved to its raw score. `earlier`
    counts the samples of the skipped shards; it is None where there are too many, or in a task but the first.
    Its seconds are those of the earlier starts, 0 where the output has no `timing.jsonl`.
    """

    stats: RunStats
    num_shards: int
    num_skipped: int
    threshold: Threshold
    earlier: Tally | None = None

    def __repr__(self) -> str:
        stats, whole = self.stats, self.in_output if self.num_skipped else None
        total = f"; {whole.num_samples:,} samples, {whole.num_kept:,} kept in the output" if whole else ""
        return (
            f"<RunResult: {stats.num_samples:,} samples, {stats.num_kept:,} kept, {stats.num_bad:,} bad; "
            f"{self.num_shards:,} shards, {self.num_skipped:,} skipped, {len(stats.failed):,} failed{total}>"
        )

    @property
    def in_output(self) -> Tally | None:
        """The counters of all that the output holds, or None where that isn't known.

        `seconds` are those of all starts, 0 where they aren't known.
        """
        if self.earlier is None:
            return None
        known = self.earlier.seconds > 0 or self.earlier.num_samples == 0
        seconds = self.earlier.seconds + self.stats.seconds if known else 0.0
        return replace(self.earlier + self.stats.reports.committed, seconds=seconds)

    @property
    def exit_code(self) -> int:
        """0 where every shard is committed and at least one image was ever scored or filtered, else 1.

        A task of a job with more tasks than shards has none and is complete.
        """
        looked_at = self.stats.num_scored or self.stats.statuses[Status.FILTERED.value]
        scored_nothing = self.num_shards > 0 and not looked_at and self.num_skipped == 0
        return 1 if self.stats.failed or scored_nothing else 0


def launch(config: Config, engine: Engine, watch: Watch | None = None, task: Task = ALONE) -> RunResult:
    """Runs `config` by `engine`; of several tasks that share the output, this one's part.

    Raises ConfigError for an input that can't be planned, OutputBusy, RunMismatch and OutputMismatch (all of
    them ValueErrors), OSError where the output can't be written, and what the engine raises.
    """
    more = ", ..." if len(config.input) > _NAMED else ""
    _LOG.info("listing %s%s", ", ".join(config.input[:_NAMED]), more)
    shards = plan_shards(
        config.input,
        output=config.whole_output,
        image_column=config.image_column,
        follow_links=config.follow_links,
    )
    if config.output_format != "tar" and not config.scores_only and shards and shards[0].kind != "folder":
        raise ConfigError(
            f"--output-format {config.output_format} is for an input of image files, and {shards[0].source} "
            "is none: leave it out"
        )
    job = "" if task.is_alone else task.job
    with (
        claim(config.output, job=job),
        engine(config, shards, task) as prepared,
    ):
        left = open_output(config.output, prepared.record, shards)
        todo = task.part(left, len(shards))
        stats, earlier = RunStats(), None
        if task.index == 0:
            earlier = Tally()
            for report in earlier_reports(config.output, shards, left):
                stats.reports.warnings.add(report.source, report.warnings)
                earlier = earlier + tally_of(report) if earlier and report.name else None
            if earlier and earlier.num_samples and (speed := read_speed(Path(config.output))):
                earlier = replace(earlier, seconds=speed.seconds)
        _LOG.info("%s", _started(prepared, len(todo), task.part_size(len(shards))))
        with watch(stats, len(todo)) if watch else nullcontext():
            prepared.work(todo, stats)
        if stats.incidents:
            clean_leftovers(config.output)  # temporary files of workers that died
    num_shards = task.part_size(len(shards))
    return RunResult(
        stats=stats,
        num_shards=num_shards,
        num_skipped=num_shards - len(todo),
        earlier=earlier,
        threshold=prepared.config.threshold,
    )


def _started(prepared: Prepared, num_todo: int, num_shards: int) -> str:
    """What the work is about to do: shards, model, precision, device and output."""
    config, identity = prepared.config, prepared.record[IDENTITY]
    before = f" ({num_shards - num_todo:,} of {num_shards:,} are done)" if num_todo < num_shards else ""
    where = f"{num_todo:,} shard{'s' * (num_todo != 1)}{before}, into {config.output}"
    if "precision" not in identity:  # a cut of stored scores
        return f"writing the images within the threshold: {where}"
    device = prepared.record["environment"]["gpu"] or "the CPU"
    launch = config.launch
    processes = f" in {count} processes" if (count := launch.gpus or launch.workers) else ""
    model = f"{config.model.encoder} and {', '.join(identity['heads'])}"
    how = f"{identity['precision']} ({identity['backend']}) on {device}{processes}"
    return f"scoring with {model}, {how}: {where}"
