"""The log for machines: a JSON object a line, for the start, each shard, progress, deaths and the end."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TextIO

from dali_aesthetic.config import ConfigError
from dali_aesthetic.overlap import every
from dali_aesthetic.stats import RunStats
from dali_aesthetic.types import ShardReport
from dali_aesthetic.version import __version__

_LOG = logging.getLogger(__name__)
POLL_SECONDS = 0.5
_PROGRESS_SECONDS = 30.0


class JsonLog:
    """Writes each event to `file` as a line and flushes it. A failure does not end the run.

    Where the disk is full or a pipe closed, a warning names `target`, and the log ends.
    """

    def __init__(self, file: TextIO, target: str) -> None:
        self._file, self._target, self._failed = file, target, False

    def write(self, event: str, level: str = "info", **fields: Any) -> None:
        """A line with the time (UTC, RFC 3339), `level`, `event` and `fields`."""
        if self._failed:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            self._file.write(json.dumps({"time": now, "level": level, "event": event, **fields}) + "\n")
            self._file.flush()
        except OSError as error:
            self._failed = True
            _LOG.warning("--log-json %s ends here, the run goes on: %s", self._target, error.strerror)

    @contextmanager
    def watch(self, stats: RunStats, num_shards: int) -> Iterator[None]:
        """Logs the run from its start to its end, however it ends."""
        self.write("start", version=__version__, process=os.getpid(), shards=num_shards)
        follower = Follower(self.write, stats, _PROGRESS_SECONDS)
        failure: BaseException | None = None
        try:
            with every(POLL_SECONDS, follower.poll, "log"):
                yield
        except BaseException as error:
            failure = error
            raise
        finally:
            follower.poll()
            self._end(stats, num_shards, failure)

    def _end(self, stats: RunStats, num_shards: int, failure: BaseException | None) -> None:
        done = len(stats.reports) - len(stats.failed)
        error = "" if failure is None else f"{type(failure).__name__}: {failure}"
        level = "info" if done == num_shards else "error"
        first = {name: round(seconds, 3) for name, seconds in stats.first_times().items()}
        counters = {**_counters(stats), "first": first}
        self.write("end", level, **counters, committed=done, failed=len(stats.failed), error=error)


class Write(Protocol):
    """Writes an event to a log."""

    def __call__(self, event: str, level: str = "info", **fields: Any) -> None: ...


class Follower:
    """Writes what changed in `stats` since the last poll, and the progress every so many `seconds`."""

    def __init__(self, write: Write, stats: RunStats, seconds: float) -> None:
        self._write, self._stats, self._seconds = write, stats, seconds
        self._num_reports = self._num_incidents = 0
        self._logged_at = time.monotonic()

    def poll(self) -> None:
        for number, report in self._stats.reports.since(self._num_reports):
            self._report(report)
            self._num_reports = number + 1  # reports that came too fast are skipped, none comes twice
        incidents = self._stats.incidents
        for incident in incidents[self._num_incidents :]:
            self._write("worker_died", "warning", message=incident)
        self._num_incidents = len(incidents)
        if time.monotonic() - self._logged_at >= self._seconds:
            self._logged_at = time.monotonic()
            workers = {name: tally.num_samples for name, tally in dict(self._stats.workers).items()}
            self._write("progress", **_counters(self._stats), workers=workers)

    def _report(self, report: ShardReport) -> None:
        if report.error:
            self._write("shard_failed", "error", name=report.name, source=report.source, error=report.error)
            return
        self._write(
            "shard_committed",
            "warning" if report.damage or report.warnings else "info",
            name=report.name,
            source=report.source,
            samples=report.num_samples,
            kept=report.num_kept,
            statuses=dict(report.statuses),
            bytes_kept=report.bytes_kept,
            damage=report.damage,
            warnings=list(report.warnings),
        )


@contextmanager
def json_log(target: str) -> Iterator[JsonLog]:
    """Appends to the file `target`, writes to standard error for `-`. Raises ConfigError where it can't."""
    if target == "-":
        yield JsonLog(sys.stderr, target)
        return
    try:
        file = Path(target).open("a", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"--log-json {target}: {error.strerror}; give a file that can be written") from None
    try:
        yield JsonLog(file, target)
    finally:
        with suppress(OSError):  # closing tries once more to write the buffer
            file.close()


def _counters(stats: RunStats) -> dict[str, Any]:
    return {
        "samples": stats.num_samples,
        "kept": stats.num_kept,
        "bad": stats.num_bad,
        "seconds": round(stats.seconds, 3),
        "samples_per_second": round(stats.samples_per_second, 1),
        "bound_by": stats.bound_by(),
    }
