"""The host side alone: scan, check, feed and sink, without decoding and encoding. Needs no GPU.

The loop is the package's own (`run_shards`) with its threads and queues. Decoder and scorer are null stages
that do the same work on the host as the real ones.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from benchmarks.bench import fresh, share_to_threshold
from benchmarks.measure import Work, measure_rate
from benchmarks.results import Record
from benchmarks.settings import Settings
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


def measure(settings: Settings) -> None:
    """The host side alone, on two cores: the package's loop with null stages for decoder and scorer."""
    record = settings.record("host")
    spec, pattern = settings.host_shards()
    record.note("dataset", asdict(spec))
    measure_host(
        record,
        pattern,
        settings.data,
        batch_size=settings.batch_size or 512,
        repeats=settings.num_repeats,
        num_cores=NUM_CORES,
    )
    record.note("complete", True)


def profile(settings: Settings) -> None:
    """The host side's time by function, with the overhead of the profiler."""
    _, pattern = settings.host_shards()
    print(profile_host(pattern, settings.data, settings.batch_size or 512, lines=40))


class NullDecoder:
    """Prepares the arrays and regions that DALI would be fed, and decodes nothing."""

    engine = None

    def __init__(self) -> None:
        self._pixels = torch.zeros(1, 1, 1, 3, dtype=torch.uint8)

    def decode(self, batches: Iterable[EncodedBatch]) -> Iterator[ImageBatch]:
        """Batches with a placeholder for their pixels."""
        for batch in batches:
            rows = feed(batch)
            yield ImageBatch(
                encoded=batch,
                headers=batch.headers,
                images_NHWC=self._pixels,
                rows_N=np.asarray(rows, np.int64),
            )


class NullScorer:
    """Gives every image a random score, uniform in 0..10."""

    head_names = ("random",)

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._rng = np.random.default_rng(0)

    def score(self, batches: Iterable[ImageBatch]) -> Iterator[PendingScores]:
        """Scores without waiting."""
        for batch in batches:
            scores_RH = np.full((len(batch.encoded.samples), 1), np.nan, np.float32)
            scores_RH[batch.rows_N, 0] = self._rng.uniform(0, 10, len(batch.rows_N))
            scored = ScoredBatch(encoded=batch.encoded, headers=batch.headers, scores_RH=scores_RH)
            yield PendingScores(partial(_itself, scored))


def _itself(scored: ScoredBatch) -> ScoredBatch:
    return scored


def feed(batch: EncodedBatch) -> list[int]:
    """Prepare a batch for DALI as the decoder does; returns the rows that DALI would decode."""
    rows = [row for row, header in enumerate(batch.headers) if header.route is Route.DALI]
    images = [np.frombuffer(image, np.uint8) for row in rows if (image := batch.samples[row].image)]
    sizes = [(batch.headers[row].width, batch.headers[row].height) for row in rows]
    assert len(images) == len(sizes)
    resize_steps(sizes, IMAGE_SIZE)
    return rows


def measure_host(
    record: Record, pattern: str, folder: Path, *, batch_size: int, repeats: int, num_cores: int
) -> None:
    """The steps in one thread, each with those before it; then the loop with all its threads."""
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
    """A table of the functions with most own time; the steps run one after the other in one thread."""
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
    """The package's loop with null stages; `kept` is the share of samples written."""
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


class limited_to:
    """Restricts this process to `num_cores` of its cores while the block runs; yields their number."""

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
