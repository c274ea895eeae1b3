"""The only definition of done: a shard's tar, then its scores, then its stats, each whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

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
from dali_aesthetic.write.files import output_path, publish, write_temporary, write_whole
from dali_aesthetic.write.parquet import ScoreRows, score_columns
from dali_aesthetic.write.tar import ShardTarWriter

FOLDERS = ("shards", "scores", "stats")
Keep = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.bool_]]
"""Which raw scores of the first head are good enough; NaN (not scored) never is."""


class _OpenShard:
    """A shard whose end has not come: its tar under a temporary name, its rows in memory."""

    def __init__(self, output: Path, shard: Shard, head_names: Sequence[str]) -> None:
        self.shard = shard
        self.rows = ScoreRows(head_names, f"shards/{shard.name}.tar")
        self.num_samples = 0
        self.num_kept = 0
        self._scores = output_path(output / "scores", shard.name, ".parquet")
        self._stats = output_path(output / "stats", shard.name, ".json")
        self.tar = ShardTarWriter(output_path(output / "shards", shard.name, ".tar"))

    def add(
        self,
        samples: Sequence[Sample],
        headers: Sequence[ImageHeader],
        scores_RH: npt.NDArray[np.float32],
        kept_R: npt.NDArray[np.bool_],
    ) -> None:
        """Appends rows and streams the entries of those kept."""
        self.rows.add(samples, headers, scores_RH, kept_R)
        entries: list[Buffer] = []
        for row in np.flatnonzero(kept_R).tolist():
            entries.extend(samples[row].entries)
        self.tar.add(entries)
        self.num_samples += len(samples)
        self.num_kept += int(np.count_nonzero(kept_R))

    def commit(self, end: ShardEnd) -> ShardReport:
        """Tar, scores, stats, in this order; a kill in between leaves the shard undone."""
        report = ShardReport(
            name=self.shard.name,
            source=self.shard.source,
            num_samples=self.num_samples,
            num_kept=self.num_kept,
            statuses=self.rows.statuses(),
            bytes_kept=self.tar.num_bytes,
            damage=end.damage,
            warnings=(*end.warnings, *self.rows.warnings()),
            fingerprint=self.shard.fingerprint,
        )
        scores = write_temporary(self._scores, memoryview(self.rows.to_parquet()))
        try:
            self.tar.finish()
            self.tar.publish()
        except BaseException:
            scores.unlink(missing_ok=True)
            raise
        publish(scores, self._scores)
        write_whole(self._stats, json.dumps(asdict(report), indent=2, sort_keys=True).encode() + b"\n")
        return report


class ShardSink:
    """Takes scored batches in input order and commits each shard when its end has come.

    A context manager: leaving it abandons what is open (its temporary files are removed). Raises OSError
    naming the file where a write fails; the sink is then of no more use.
    """

    def __init__(self, output: str | Path, head_names: Sequence[str], keep: Keep) -> None:
        self.output = Path(output)
        self.head_names = tuple(head_names)
        score_columns(head_names)
        self.keep = keep
        self._open: dict[str, _OpenShard] = {}
        for folder in FOLDERS:
            (self.output / folder).mkdir(parents=True, exist_ok=True)

    def write(self, batch: ScoredBatch) -> list[ShardReport]:
        """Appends every row, streams the kept samples, and commits the ended shards (`error`: abandons)."""
        ok_R = np.fromiter(map(_is_ok, batch.encoded.samples, batch.headers), np.bool_)
        # What no decoder vouches for has no score, whatever the model made of its place in the batch.
        scores_RH = np.where(ok_R[:, None], batch.scores_RH, np.float32(np.nan))
        kept_R = self.keep(scores_RH[:, 0]) & ~np.isnan(scores_RH[:, 0])
        start = 0
        for _, run in groupby(sample.shard.name for sample in batch.encoded.samples):
            rows = slice(start, start + sum(1 for _ in run))
            samples = batch.encoded.samples[rows]
            self._opened(samples[0].shard).add(samples, batch.headers[rows], scores_RH[rows], kept_R[rows])
            start = rows.stop
        return [self._end(end) for end in batch.encoded.ended]

    def _opened(self, shard: Shard) -> _OpenShard:
        if shard.name not in self._open:
            self._open[shard.name] = _OpenShard(self.output, shard, self.head_names)
        return self._open[shard.name]

    def _end(self, end: ShardEnd) -> ShardReport:
        shard = end.shard
        if end.error:
            if (opened := self._open.pop(shard.name, None)) is not None:
                opened.tar.abandon()
            return ShardReport(name=shard.name, source=shard.source, error=end.error, warnings=end.warnings)
        opened = self._opened(shard)
        try:
            return opened.commit(end)
        finally:
            self._open.pop(shard.name).tar.abandon()

    def close(self) -> None:
        """Abandons the shards still open; they are done again by the next run."""
        while self._open:
            self._open.popitem()[1].tar.abandon()

    def __enter__(self) -> ShardSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_ok(sample: Sample, header: ImageHeader) -> bool:
    return sample.status is Status.OK and header.status is Status.OK
