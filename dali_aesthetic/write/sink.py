"""From scored batches to files: kept samples are streamed, rows collected, finished shards committed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from dali_aesthetic import layout
from dali_aesthetic.overlap import Backlog
from dali_aesthetic.types import (
    Buffer,
    ImageHeader,
    Sample,
    ScoredBatch,
    Shard,
    ShardEnd,
    ShardReport,
    Status,
)
from dali_aesthetic.write.commit import Part, abandon, commit, destination
from dali_aesthetic.write.files import make_folder, output_path
from dali_aesthetic.write.kept_rows import BadRows, KeptRows
from dali_aesthetic.write.rows import Condition, Keep, ScoreRows, json_columns, score_columns
from dali_aesthetic.write.writers import KeptFiles, ShardEmbeddings, TarWriter

JUDGED_FROM = 100
"""Shards with fewer samples are not judged by their share of bad ones."""


class ShardSink:
    """Takes scored batches in input order and commits each finished shard in a background thread.

    A context manager: leaving it waits for running commits and abandons open shards, whose temporary files
    are removed. Where a write or a commit fails, the next call raises OSError naming the file; the sink can't
    be used after that. `output` may be a URL.

    A shard of `JUDGED_FROM` samples or more of which more than `max_bad_fraction` could not be scored is
    reported as failed. With `quarantine` such samples are copied too, as tar entries or as rows of Parquet.
    Without `images` there are scores and stats only, and nothing counts as kept. With `embeddings` those of
    each batch are written. `columns` are the json fields with columns of their own, as `json_columns` takes
    them; `profile` adds those of `layout.PROFILE`; `output_format` is the configuration's. Of the samples in
    `keep` only those are kept for whose rows `where` holds.
    """

    def __init__(
        self,
        output: str | Path,
        head_names: Sequence[str],
        keep: Keep,
        *,
        images: bool = True,
        max_bad_fraction: float = 1.0,
        quarantine: bool = False,
        embeddings: bool = False,
        columns: Sequence[str] = (),
        where: Condition | None = None,
        output_format: str = "tar",
        profile: bool = False,
    ) -> None:
        self.profile = profile
        self.destination = destination(output)
        self.head_names = tuple(head_names)
        self.fields = json_columns(columns, score_columns(head_names))
        self._keep = keep if images else _keep_nothing
        self.where = where if images else None
        self.images, self.output_format = images, output_format
        self.num_kept = 0
        """Of the last `write`."""
        self.max_bad_fraction, self.quarantine = max_bad_fraction, quarantine
        self.embeddings = embeddings
        self._open: dict[str, _OpenShard] = {}
        self._commits: Backlog[ShardReport] = self.destination.backlog()
        samples = {layout.SHARDS: images and output_format == "tar", layout.QUARANTINE: quarantine}
        for folder in (layout.SCORES, layout.STATS, *(name for name in samples if samples[name])):
            make_folder(self.destination.root / folder)

    def write(self, batch: ScoredBatch) -> list[ShardReport]:
        """Appends rows, streams kept samples, and queues finished shards for commit; abandons failed ones.

        Returns the reports of shards committed since the last call, in input order; `flush` returns the last.
        """
        ok_R = np.fromiter(map(_is_ok, batch.encoded.samples, batch.headers), np.bool_)
        # An image that was not decoded has no score, whatever the model computed for its row.
        scores_RH = np.where(ok_R[:, None], batch.scores_RH, np.float32(np.nan))
        kept_R = self._keep(scores_RH[:, 0]) & ~np.isnan(scores_RH[:, 0])
        start = self.num_kept = 0
        for _, run in groupby(sample.shard.name for sample in batch.encoded.samples):
            rows = slice(start, start + sum(1 for _ in run))
            samples = batch.encoded.samples[rows]
            opened = self._opened(samples[0].shard)
            embeddings_RD = None if batch.embeddings_RD is None else batch.embeddings_RD[rows]
            profile_R = None if batch.profile_R is None else batch.profile_R[rows]
            facts = batch.headers[rows], scores_RH[rows], kept_R[rows], ok_R[rows]
            self.num_kept += opened.add(samples, *facts, embeddings_RD, profile_R)
            start = rows.stop
        ended = [report for end in batch.encoded.ended for report in self._commits.add(self._end(end))]
        return ended + self._commits.take()

    def flush(self) -> list[ShardReport]:
        """Waits for all commits and returns the reports that `write` has not returned."""
        return self._commits.take(leave=0)

    def _opened(self, shard: Shard) -> _OpenShard:
        if shard.name not in self._open:
            self._open[shard.name] = _OpenShard(self, shard)
        return self._open[shard.name]

    def _end(self, end: ShardEnd) -> Callable[[], ShardReport]:
        """The commit of a finished shard, or the report of why there is none."""
        name = end.shard.name
        objection = end.error
        if not objection:
            objection = self._opened(end.shard).objection(self.max_bad_fraction)
        if not objection:
            return partial(self._commit, self._open[name], end)
        if (opened := self._open.pop(name, None)) is not None:
            opened.abandon()
        return partial(_failed, end, objection)

    def _commit(self, opened: _OpenShard, end: ShardEnd) -> ShardReport:
        try:
            return opened.commit(end)
        finally:
            del self._open[end.shard.name]

    def close(self) -> None:
        """Abandons open shards; the next run does them again."""
        self.destination.stop()
        self._commits.cancel()
        while self._open:
            self._open.popitem()[1].abandon()
        self.destination.close()

    def __enter__(self) -> ShardSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()


def _keep_nothing(raw_scores_R: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    return np.zeros(len(raw_scores_R), np.bool_)


def _failed(end: ShardEnd, error: str) -> ShardReport:
    shard, warnings = end.shard, (*end.shard.warnings, *end.warnings)
    return ShardReport(name=shard.name, source=shard.source, error=error, warnings=warnings)


def _entries(samples: Sequence[Sample], wanted_R: npt.NDArray[np.bool_]) -> list[Buffer]:
    return [entry for row in np.flatnonzero(wanted_R).tolist() for entry in samples[row].entries]


def _is_ok(sample: Sample, header: ImageHeader) -> bool:
    return sample.status is Status.OK and header.status is Status.OK


class _OpenShard:
    """A shard that is not committed: its samples under temporary names, its rows in memory."""

    def __init__(self, sink: ShardSink, shard: Shard) -> None:
        self.shard, self._destination = shard, sink.destination
        name, output, is_parquet = shard.name, sink.destination.root, shard.kind == "parquet"
        suffix = layout.PARQUET if is_parquet else layout.TAR
        as_files = shard.kind == "folder" and sink.output_format != "tar"
        samples = "" if as_files else layout.shard_file(name, suffix)
        self.num_samples = self.num_kept = self.num_quarantined = 0
        self._stats = output_path(output, layout.stats_file(name))
        bad = layout.quarantine_file(name, suffix)
        self._bad = output_path(output, bad) if sink.quarantine else None
        self.quarantine: TarWriter | BadRows | None = None
        scores = output_path(output, layout.scores_file(name))
        self._where = sink.where
        self._removed = np.zeros((2, 1), np.int64)  # of every part
        self.rows = ScoreRows(scores, sink.head_names, samples, sink.fields, sink.where, sink.profile)
        self.embeddings: ShardEmbeddings | None = None
        if sink.embeddings:
            self.embeddings = ShardEmbeddings(output, shard, self.rows.fields.names)
            self.rows.each = self.embeddings.add_rows
        self.kept: TarWriter | KeptRows | KeptFiles | None = None
        if sink.images and as_files:
            self.kept = KeptFiles(output, shard.source, as_links=sink.output_format == "links")
        elif sink.images:  # last, as it makes a file, and nobody abandons what was not built
            final = output_path(output, samples)
            self.kept = KeptRows(final, shard.source) if is_parquet else TarWriter(final)

    def add(
        self,
        samples: Sequence[Sample],
        headers: Sequence[ImageHeader],
        scores_RH: npt.NDArray[np.float32],
        kept_R: npt.NDArray[np.bool_],
        ok_R: npt.NDArray[np.bool_],
        embeddings_RD: npt.NDArray[np.float16] | None,
        profile_R: npt.NDArray[np.void] | None,
    ) -> int:
        """Appends rows; streams the samples to keep and those for quarantine. Returns how many are kept."""
        if self.embeddings is not None and embeddings_RD is not None:
            self.embeddings.add(embeddings_RD[ok_R])
        marks_RC = self.rows.add(samples, headers, scores_RH, kept_R, profile_R)
        if self._where is not None:
            self._removed = self._removed + self._where.removed(marks_RC[~np.isnan(scores_RH[:, 0])])
        kept_R = np.logical_and.reduce(marks_RC, axis=1)
        if isinstance(self.kept, KeptRows | KeptFiles):
            self.kept.add([samples[row] for row in np.flatnonzero(kept_R).tolist()])
        elif self.kept is not None:
            self.kept.add(_entries(samples, kept_R))
        if self._bad is not None and not ok_R.all():
            bad = [
                row for row in np.flatnonzero(~ok_R).tolist() if headers[row].status is not Status.FILTERED
            ]
            self._add_bad(self._bad, [samples[row] for row in bad], [headers[row] for row in bad])
        self.num_samples += len(samples)
        num_kept = int(np.count_nonzero(kept_R))
        self.num_kept += num_kept
        return num_kept

    def _add_bad(self, final: Path, samples: Sequence[Sample], headers: Sequence[ImageHeader]) -> None:
        """Copies samples that could not be scored, as rows of Parquet or as tar entries, if there are any."""
        if self.shard.kind == "parquet":
            if not isinstance(self.quarantine, BadRows):
                self.quarantine = BadRows(final, self.shard.source)
            self.quarantine.add_bad(samples, headers)
            self.num_quarantined = self.quarantine.num_rows
        elif entries := [entry for sample in samples for entry in sample.entries]:
            if not isinstance(self.quarantine, TarWriter):
                self.quarantine = TarWriter(final)
            self.quarantine.add(entries)  # `abandon` removes the file if this fails
            self.num_quarantined += sum(bool(sample.entries) for sample in samples)

    def objection(self, max_bad_fraction: float) -> str:
        """Why the shard fails `max_bad_fraction`, or ""."""
        statuses = self.rows.statuses()
        num_bad = self.num_samples - sum(statuses.pop(status, 0) for status in (Status.OK, Status.FILTERED))
        if self.num_samples < JUDGED_FROM or num_bad <= max_bad_fraction * self.num_samples:
            return ""
        reasons = ", ".join(f"{count} {status}" for status, count in statuses.items())
        return (
            f"{num_bad} of its {self.num_samples} samples are bad ({reasons}), more than --max-bad-fraction "
            f"{max_bad_fraction:g} allows; nothing of it was written (1 would accept it)"
        )

    def commit(self, end: ShardEnd) -> ShardReport:
        """Makes the shard done; see `write/commit.py`."""
        return commit(self._parts(), self._stats, partial(self._report, end), self._destination.deliver)

    def _report(self, end: ShardEnd) -> ShardReport:
        return ShardReport(
            name=self.shard.name,
            source=self.shard.source,
            num_samples=self.num_samples,
            num_kept=self.num_kept,
            statuses=self.rows.statuses(),
            bytes_kept=0 if self.kept is None else self.kept.num_bytes,
            num_quarantined=self.num_quarantined,
            removed=tuple(self._parts_removed()),
            damage=end.damage,
            warnings=(*self.shard.warnings, *end.warnings, *self.rows.warnings()),
            fingerprint=self.shard.fingerprint,
        )

    def _parts_removed(self) -> list[tuple[str, int, int]]:
        if self._where is None:
            return []
        parts = (layout.THRESHOLD, *self._where.conjuncts)
        alone, in_order = (self._removed + np.zeros((2, len(parts)), np.int64)).tolist()
        return list(zip(parts, alone, in_order, strict=True))

    def abandon(self) -> None:
        """Removes the temporary files; also fine after `commit`."""
        abandon(self._parts())

    def _parts(self) -> list[Part]:
        embeddings = () if self.embeddings is None else self.embeddings.parts
        streamed = (part for part in (self.kept, self.quarantine) if part is not None)
        return [*streamed, self.rows, *embeddings]
