"""The host side alone: scan, check, feed, sink, with nothing behind the feed that computes.

The loop is the package's own (`run_shards`), its threads and queues included; decoder and encoder are null
stages that take the same steps on the host as the real ones. No GPU is needed.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from benchmarks.record import Measured, Record
from benchmarks.throughput import NOTHING, fresh
from benchmarks.timing import Work, measure_rate
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.decode.decoder import DaliDecoder
from dali_aesthetic.decode.geometry import resize_steps
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.run_shard import Stages, run_shards
from dali_aesthetic.score.scorer import Scorer
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.stats import RunStats
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.types import EncodedBatch, ImageBatch, PendingScores, Route, ScoredBatch
from dali_aesthetic.write.sink import ShardSink

TARGET = 6600
NUM_CORES = 2
IMAGE_SIZE = 224
_CPU = torch.device("cpu")


class NullDecoder:
    """Prepares what DALI would be fed, arrays and regions, and decodes nothing."""

    def __init__(self) -> None:
        self._pixels = torch.zeros(1, 1, 1, 3, dtype=torch.uint8)

    def decode(self, batches: Iterable[EncodedBatch]) -> Iterator[ImageBatch]:
        """Batches whose pixels are a placeholder."""
        for batch in batches:
            rows = feed(batch)
            yield ImageBatch(
                encoded=batch,
                headers=batch.headers,
                images_NHWC=self._pixels,
                rows_N=np.asarray(rows, np.int64),
            )


class NullScorer:
    """Gives every image a score, uniform in 0..10, and computes nothing."""

    head_names = ("random",)

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._rng = np.random.default_rng(0)

    def score(self, batches: Iterable[ImageBatch]) -> Iterator[PendingScores]:
        """Scores that are there at once."""
        for batch in batches:
            scores_RH = np.full((len(batch.encoded.samples), 1), np.nan, np.float32)
            scores_RH[batch.rows_N, 0] = self._rng.uniform(0, 10, len(batch.rows_N))
            scored = ScoredBatch(encoded=batch.encoded, headers=batch.headers, scores_RH=scores_RH)
            yield PendingScores(partial(_itself, scored))


def _itself(scored: ScoredBatch) -> ScoredBatch:
    return scored


def feed(batch: EncodedBatch) -> list[int]:
    """What the decoder prepares for DALI; the rows that it would decode."""
    rows = [row for row, header in enumerate(batch.headers) if header.route is Route.DALI]
    images = [np.frombuffer(image, np.uint8) for row in rows if (image := batch.samples[row].image)]
    sizes = [(batch.headers[row].width, batch.headers[row].height) for row in rows]
    assert len(images) == len(sizes)
    resize_steps(sizes, IMAGE_SIZE)
    return rows


def measure_host(
    record: Record, pattern: str, folder: Path, *, batch_size: int, repeats: int, num_cores: int
) -> None:
    """Each step up to and including the one named, in one thread; then the loop with all its threads."""
    with limited_to(num_cores) as cores:
        record.note("cores_used", cores)
        for name, work in _steps(pattern, batch_size).items():
            record.add(measure_rate(name, work, repeats, _CPU))
        for kept in (0.0, 0.25, 1.0):
            name = f"host loop, {100 * kept:.0f}% kept"
            work = loop_work(pattern, folder, batch_size, kept)
            row = measure_rate(name, work, repeats, _CPU, limit=None, detail=_against_target(cores))
            record.add(row)


def profile_host(pattern: str, folder: Path, batch_size: int, lines: int) -> str:
    """The functions that take most time of their own, one thread after the other, as a table."""
    profiler = cProfile.Profile()
    batches = []
    start = time.process_time()
    profiler.enable()
    for batch in fill_batches(read_shards(plan_shards(pattern)), batch_size, Limits()):
        feed(batch)
        batches.append(batch)
    _sink_all(batches, fresh(folder / "profile"), share_to_threshold(0.25))
    profiler.disable()
    samples = sum(len(batch.samples) for batch in batches)
    text = _profile_table(profiler, samples, lines)
    return f"{samples:,} samples, {1e6 * (time.process_time() - start) / samples:.1f} us each\n{text}"


def loop_work(pattern: str, folder: Path, batch_size: int, kept: float) -> Work:
    """The package's loop between null stages; `kept` is the share of samples written."""
    shards = plan_shards(pattern)
    threshold = share_to_threshold(kept)

    def work() -> int:
        stats = RunStats()
        with ShardSink(fresh(folder / "host-output"), NullScorer.head_names, threshold.keep) as sink:
            stages = Stages(
                limits=Limits(),
                decoder=cast(DaliDecoder, NullDecoder()),
                scorer=cast(Scorer, NullScorer(batch_size)),
                sink=sink,
            )
            for report in run_shards(shards, stages, stats):
                assert not report.error, report.error
        return stats.num_samples

    return work


def share_to_threshold(kept: float) -> Threshold:
    """The cut that keeps this share of scores uniform in 0..10."""
    return NOTHING if kept <= 0 else Threshold(raw=10 * (1 - kept))


class limited_to:
    """Runs its block on at most `num_cores` of this process's cores, and gives back how many these are."""

    def __init__(self, num_cores: int) -> None:
        self._before = os.sched_getaffinity(0)
        self._chosen = set(sorted(self._before)[:num_cores])

    def __enter__(self) -> int:
        os.sched_setaffinity(0, self._chosen)
        return len(self._chosen)

    def __exit__(self, *failure: object) -> None:
        os.sched_setaffinity(0, self._before)


def _steps(pattern: str, batch_size: int) -> dict[str, Work]:
    shards = plan_shards(pattern)

    def scan() -> int:
        return sum(1 for _ in read_shards(shards)) - len(shards)

    def checked() -> Iterator[EncodedBatch]:
        return fill_batches(read_shards(shards), batch_size, Limits())

    def check() -> int:
        return sum(len(batch.samples) for batch in checked())

    def fed() -> int:
        count = 0
        for batch in checked():
            feed(batch)
            count += len(batch.samples)
        return count

    return {"scan": scan, "scan + check": check, "scan + check + feed": fed}


def _sink_all(batches: Sequence[EncodedBatch], output: Path, threshold: Threshold) -> None:
    null = NullScorer(1)
    images = NullDecoder().decode(batches)
    with ShardSink(output, null.head_names, threshold.keep) as sink:
        for pending in null.score(images):
            sink.write(pending.wait())


def _against_target(cores: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"target": TARGET, "cores": cores}


def _profile_table(profiler: cProfile.Profile, samples: int, lines: int) -> str:
    stats: Any = pstats.Stats(profiler)
    entries = sorted(stats.stats.items(), key=lambda entry: -entry[1][2])[:lines]
    return "\n".join(
        f"{1e6 * own / samples:8.2f} us  {calls / samples:7.2f} calls  {Path(file).name}:{line} {function}"
        for (file, line, function), (_, calls, own, _, _) in entries
    )


def summary(measured: Measured) -> str:
    """One sentence on a row of the host loop."""
    row = measured.as_row()
    per_core = 1e6 / row["cpu_us_per_image"]
    return f"{row['name']}: {row['median']:,.0f} samples/s, {per_core:,.0f} per core of CPU time"
