"""Output of a run for people: a live progress line, and a summary table at the end."""

from __future__ import annotations

import logging
import math
import re
import shlex
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dali_aesthetic import layout
from dali_aesthetic.config import Config
from dali_aesthetic.launch.engine import RunResult
from dali_aesthetic.observe.log import POLL_SECONDS, Follower
from dali_aesthetic.overlap import every
from dali_aesthetic.stats import RunStats
from dali_aesthetic.threshold import PRESETS, RAW_PER_UNIT, bounds_text, percent
from dali_aesthetic.timing import clock
from dali_aesthetic.types import Status
from dali_aesthetic.write.read_scores import read_raw_scores

_LOG = logging.getLogger(__name__)
_RATE_SECONDS = 10.0
_NAMED = 10
_MOST_READ = 1000
"""Shards whose scores are read for a hint."""


class Progress:
    """The counters of a run as a line. rich renders it a few times a second."""

    def __init__(self, stats: RunStats, num_shards: int) -> None:
        self._stats, self._num_shards = stats, num_shards
        self._recent: deque[tuple[float, dict[str, int]]] = deque()

    def __rich__(self) -> Table:
        done = len(self._stats.reports)
        row = Table.grid(padding=(0, 1), expand=False)
        row.add_row(
            ProgressBar(total=max(self._num_shards, 1), completed=done, width=24), Text(self.line(), "none")
        )
        if workers := self.worker_line():
            row.add_row("", Text(workers, "none"))
        return row

    def worker_line(self) -> str:
        """Each worker's rate over the last seconds; empty for a single process."""
        now = time.perf_counter()
        self._recent.append((now, {name: tally.num_samples for name, tally in self._stats.workers.items()}))
        while len(self._recent) > 2 and now - self._recent[0][0] > _RATE_SECONDS:
            self._recent.popleft()
        then, before = self._recent[0]
        seconds = max(now - then, 1e-9)
        rates = {
            name: max(0, count - before.get(name, 0)) / seconds for name, count in self._recent[-1][1].items()
        }
        return " · ".join(f"{name} {rate:,.0f}/s" for name, rate in rates.items())

    def line(self) -> str:
        """Shards, rate, kept share, bad samples, time left and what bounds the run."""
        stats, done = self._stats, len(self._stats.reports)
        parts = [
            f"{done}/{self._num_shards} shards",
            f"{stats.num_samples:,} images",
            f"{stats.samples_per_second:,.0f} images/s",
            f"kept {share(stats.num_kept, stats.num_scored)}",
            f"bad {stats.num_bad:,}",
        ]
        if done and done < self._num_shards:
            parts.append(f"ETA {clock(stats.seconds / done * (self._num_shards - done))}")
        if bound := stats.bound_by():
            parts.append(f"bound by {bound}")
        return " · ".join(parts)


class _PlainLog:
    """Logs a run's progress and problems as plain lines. Of one cause at most `_NAMED` shards are named."""

    def __init__(self, stats: RunStats, num_shards: int) -> None:
        self._progress = Progress(stats, num_shards)
        self._causes: Counter[str] = Counter()

    def write(self, event: str, level: str = "info", **fields: Any) -> None:
        source, damage = fields.get("source", ""), fields.get("damage")
        if event == "progress":
            lines = (self._progress.line(), self._progress.worker_line())
            _LOG.info(" · ".join(filter(None, lines)))
        elif event == "worker_died":
            _LOG.info("worker %s", fields["message"])
        elif damage:
            self._write_problem("damaged", source, damage)
        elif event == "shard_failed":
            self._write_problem("failed", source, fields["error"])

    def _write_problem(self, verb: str, source: str, text: str) -> None:
        cause = _cause(source, text)
        self._causes[alike := _alike(cause)] += 1
        if self._causes[alike] <= _NAMED:
            _LOG.info("%s %s: %s", verb, source, cause)
        elif self._causes[alike] == _NAMED + 1:
            _LOG.info("further shards of this cause are in the summary: %s", cause)


class _ToConsole(logging.Handler):
    """Prints each message as a line; in a log file with the time."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        warning = "warning " if record.levelno >= logging.WARNING else ""
        now = "" if self._console.is_terminal else f"{datetime.now():%Y-%m-%d %H:%M:%S} "
        text = " ".join(record.getMessage().splitlines())
        self._console.print(Text(f"{now}{warning}{text}"), soft_wrap=True)


@contextmanager
def logged_on(console: Console) -> Iterator[None]:
    """Prints what the package logs while the block runs: stages of the start, warnings, plain progress."""
    package, handler = logging.getLogger(_LOG.name.partition(".")[0]), _ToConsole(console)
    before = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(before)


@contextmanager
def watch_on(
    console: Console, stats: RunStats, num_shards: int, log_interval: float = math.inf
) -> Iterator[None]:
    """A live line on a terminal; else problems are logged as they come, and progress by `log_interval`."""
    if not console.is_terminal:
        follower = Follower(_PlainLog(stats, num_shards).write, stats, log_interval)
        try:
            with every(min(POLL_SECONDS, log_interval), follower.poll, "log"):
                yield
        finally:
            follower.poll()
        return
    with Live(Progress(stats, num_shards), console=console, refresh_per_second=4, transient=True):
        yield


def summary(result: RunResult, config: Config, console: Console) -> None:
    """Print the summary table, then damaged and failed shards by name."""
    stats = result.stats
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("shards", f"{len(stats.reports) - len(stats.failed)} committed, {len(stats.failed)} failed")
    if result.num_skipped:
        table.add_row("", f"{result.num_skipped} of {result.num_shards} committed before, skipped")
    if result.num_skipped and (all_of := result.in_output):
        kept = f"{all_of.num_kept:,} ({share(all_of.num_kept, all_of.num_scored)} of the scored)"
        table.add_row("in the output", f"{all_of.num_samples:,} samples, kept {kept}")
        if all_of.seconds:
            rate = all_of.num_samples / all_of.seconds
            table.add_row("", f"{rate:,.1f} images/s in {clock(all_of.seconds)}, all starts together")
    table.add_row("samples", f"{stats.num_samples:,}" + (" in this start" if result.num_skipped else ""))
    if filtered := stats.statuses[Status.FILTERED.value]:
        table.add_row("filtered", f"{filtered:,} ({share(filtered, stats.num_samples)}) before decoding")
    table.add_row("kept", f"{stats.num_kept:,} ({share(stats.num_kept, stats.num_scored)} of the scored)")
    table.add_row("threshold", escape(_threshold(result, config)))
    if result.threshold.where and not config.scores_only:
        table.add_row("where", escape(result.threshold.where))
        for part, alone, in_order in removed(result):
            table.add_row("  removed", f"{alone:,} alone, {in_order:,} in order by {escape(part)}")
    for name, text in preset_rows(stats, config.model.heads[0]):
        table.add_row(name, text)
    table.add_row("bad", _bad(stats))
    table.add_row("speed", f"{stats.samples_per_second:,.1f} images/s in {clock(stats.seconds)}")
    for name, tally in stats.workers.items():
        rate = tally.num_samples / max(tally.seconds, 1e-9)
        table.add_row(f"  {name}", f"{tally.num_samples:,} samples, {rate:,.1f} images/s")
    table.add_row("bound by", stats.bound_by() or "-")
    table.add_row("output", escape(config.output))
    console.print(table)
    if stats.library_lines:
        console.print(f"decoder libraries wrote {stats.library_lines:,} lines; --verbose shows them")
    is_cut = not (config.scores_only or result.threshold.where)  # of a condition the rows above tell
    if stats.reports.committed.num_scored and not stats.num_kept and is_cut:
        console.print(_nothing_kept(config), soft_wrap=True)
    problems(stats, console)


def problems(stats: RunStats, console: Console) -> None:
    """Print workers that died, warnings, and damaged and failed shards. `--quiet` prints these too."""
    for incident in stats.incidents:
        console.print(f"[yellow]worker[/] {escape(incident)}")
    for warning in stats.reports.warnings.lines():
        console.print(f"[yellow]warning[/] {escape(warning)}", soft_wrap=True)
    damaged = ((report.source, report.damage) for report in stats.damaged)
    failed = ((report.source, report.error) for report in stats.failed)
    for verb, found in (("[yellow]damaged[/]", damaged), ("[red]failed[/]", failed)):
        for line in _by_cause(found):
            console.print(f"{verb} {escape(line)}", soft_wrap=True)


def _by_cause(problems: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A line for each cause, with its shards. Texts that differ only in numbers are one cause."""
    by_cause: dict[str, tuple[list[str], list[str]]] = {}
    for source, text in problems:
        cause = _cause(source, text)
        sources, causes = by_cause.setdefault(_alike(cause), ([], []))
        sources.append(source)
        causes.append(cause)
    for sources, causes in by_cause.values():
        named = ", ".join(sources[:_NAMED]) + ("" if len(sources) <= _NAMED else ", ...")
        if len(sources) == 1:
            yield f"{named}: {causes[0]}"
        else:
            first = "" if len(set(causes)) == 1 else "the first: "
            yield f"{len(sources):,} shards: {first}{causes[0]} ({named})"


def as_dict(result: RunResult, config: Config) -> dict[str, Any]:
    """The summary as JSON values. `min_raw` is None for a run that only scored. Times are in seconds."""
    stats, all_of = result.stats, result.in_output
    return {
        "output": config.output,
        "output_samples": all_of.num_samples if all_of else None,
        "output_kept": all_of.num_kept if all_of else None,
        "output_seconds": round(all_of.seconds, 3) if all_of and all_of.seconds else None,
        "shards": result.num_shards,
        "committed": len(stats.reports) - len(stats.failed),
        "skipped": result.num_skipped,
        "failed": {report.source: report.error for report in stats.failed},
        "damaged": {report.source: report.damage for report in stats.damaged},
        "warnings": stats.reports.warnings.as_dict(),
        "samples": stats.num_samples,
        "statuses": dict(stats.statuses),
        "kept": stats.num_kept,
        **({"min_raw": None} if config.scores_only else result.threshold.identity()),
        "removed": [
            {"part": part, "alone": alone, "in_order": in_order} for part, alone, in_order in removed(result)
        ],
        "seconds": round(stats.seconds, 3),
        "images_per_second": round(stats.samples_per_second, 1),
        "bound_by": stats.bound_by(),
        "workers": {
            name: {"samples": tally.num_samples, "seconds": round(tally.seconds, 3)}
            for name, tally in stats.workers.items()
        },
        "library_lines": stats.library_lines,
        "incidents": list(stats.incidents),
        "exit_code": result.exit_code,
    }


def removed(result: RunResult) -> list[tuple[str, int, int]]:
    """What the threshold and each part of the condition remove of the scored samples in the output, as far as
    they are known: alone, and after the parts before it."""
    known = (result.in_output or result.stats.reports.committed).removed
    bounds = bounds_text(result.threshold.min_raw, result.threshold.upper_raw)
    found = []
    for part in dict.fromkeys(part for part, _ in known):
        if name := bounds if part == layout.THRESHOLD else part:
            found.append((name, known[part, "alone"], known[part, "in_order"]))
    return found


def preset_rows(stats: RunStats, head: str) -> list[tuple[str, str]]:
    """Share of the scored samples that each preset keeps; for the LAION v2 head with LAION-2B-en's."""
    if not stats.num_scored or not stats.presets:
        return []
    here = {name: percent(stats.presets[name] / stats.num_scored) for name in PRESETS}
    plain = [
        f"{name} {preset.raw / RAW_PER_UNIT:g}: {here[name]}"
        for name, preset in PRESETS.items()
        if not name.startswith("laion")
    ]
    laion = [
        f"{preset.raw:g}: {here[name]} ({percent(preset.laion_share)})"
        for name, preset in PRESETS.items()
        if name.startswith("laion") and preset.laion_share is not None
    ]
    rows = [("presets keep", ", ".join(plain))]
    if head == "laion-v2":
        rows.append(("LAION's cuts", ", ".join(laion) + " (in brackets: of LAION-2B-en)"))
    return rows


def share(part: int, whole: int) -> str:
    """`part` of `whole` as a percentage; a dash for nothing of nothing."""
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _cause(source: str, error: str) -> str:
    return error.removeprefix(source).lstrip(": ")


def _alike(cause: str) -> str:
    """What is equal for problems of one kind, whose texts differ in counts and places."""
    return re.sub(r"\d[\d,.]*", "0", cause)


def _threshold(result: RunResult, config: Config) -> str:
    if config.scores_only:
        return "none: scores only, for `dali-aesthetic filter` to cut"
    return result.threshold.describe(config.model.heads[0])


def _nothing_kept(config: Config) -> str:
    """The highest score, and the ways to a cut that keeps something."""
    names = sorted(layout.committed_names(config.output))[:_MOST_READ]
    highest = np.nanmax(read_raw_scores(config.output, names))
    words = [*layout.recut_words(layout.read_record(config.output), config.output), "--keep-top", "10%"]
    return (
        f"[yellow]nothing kept[/] the highest score is {highest:.4g} (raw). To see the scores: "
        + escape(shlex.join(["dali-aesthetic", "report", config.output]))
        + escape(f". To keep the best: {shlex.join(words)}")
    )


def _bad(stats: RunStats) -> str:
    reasons = {
        name: count for name, count in stats.statuses.items() if name not in (Status.OK, Status.FILTERED)
    }
    named = ", ".join(f"{count:,} {name}" for name, count in sorted(reasons.items()))
    return f"{stats.num_bad:,}" + (f" ({named})" if named else "")
