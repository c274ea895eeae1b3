"""Images per second of each stage, and end to end from tars on disk to committed output."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.open_gate import calibrated, gate_detail
from benchmarks.record import Measured
from benchmarks.settings import Settings
from benchmarks.timing import Work, finish, for_seconds, measure_rate, peak_host_mib
from dali_aesthetic.config import Config
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.launch.worker import Worker, build_worker
from dali_aesthetic.overlap import ahead
from dali_aesthetic.run_shard import Stages, run_shards
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.stats import RunStats
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.types import EncodedBatch, ImageBatch, ScoredBatch
from dali_aesthetic.write.sink import ShardSink

NOTHING = Threshold(raw=1e30)
EVERYTHING = Threshold(raw=-1e30)


@dataclass(slots=True)
class Bench:
    """A worker, the shards it is measured on, and a folder for output.

    `seconds` is how long work without an end of its own goes on for one repeat. `last_run` is what the
    latest run came to, `last_course` its seconds and samples so far as each shard was committed.
    """

    config: Config
    worker: Worker
    folder: Path
    repeats: int = 3
    seconds: float = 4.0
    last_run: RunStats = field(default_factory=RunStats)
    last_course: list[tuple[float, int]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return self.worker.device

    def measure(
        self, name: str, work: Work, limit: float | None = None, repeats: int | None = None
    ) -> Measured:
        """`work` as a row of images/s."""
        return measure_rate(name, work, repeats or self.repeats, self.device, limit=limit)


def make_bench(settings: Settings, **model: Any) -> Bench:
    """The worker of these settings and its usual shards; `model` overrules fields of its model section."""
    config = calibrated(settings.config(settings.datasets.make(), **model))
    return Bench(
        config=config,
        worker=build_worker(config),
        folder=settings.data,
        repeats=settings.num_repeats,
        seconds=settings.num_seconds,
    )


def scan_work(pattern: Sequence[str]) -> Work:
    """Tar scan and grouping of samples."""
    shards = plan_shards(pattern)
    return lambda: sum(1 for _ in read_shards(shards)) - len(shards)


def check_work(bench: Bench, pattern: Sequence[str]) -> Work:
    """Tar scan, header check, grouping into batches."""
    return lambda: sum(len(batch.samples) for batch in encoded_batches(bench, pattern))


def encoded_batches(bench: Bench, pattern: Sequence[str]) -> Iterator[EncodedBatch]:
    """The batches of some shards, read and checked."""
    worker = bench.worker
    return fill_batches(read_shards(plan_shards(pattern)), worker.scorer.batch_size, worker.limits)


def decode_work(bench: Bench, pattern: Sequence[str]) -> Work:
    """Tar scan, header check, decode and resize of every image; nothing is encoded."""

    def work() -> int:
        batches = ahead(encoded_batches(bench, pattern), 2, "storage")
        return sum(len(batch.encoded.samples) for batch in bench.worker.decoder.decode(batches))

    return work


def encoder_row(
    bench: Bench, limit: float | None = None, name: str = "encoder", images_NHWC: Tensor | None = None
) -> Measured:
    """Pixels on the device to scores on the device, full batches; random pixels without `images_NHWC`."""
    scorer = bench.worker.scorer
    shape = (scorer.batch_size, scorer.image_size, scorer.image_size, 3)
    if images_NHWC is None:
        images_NHWC = torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device)
    work = for_seconds(lambda: scorer.backend(images_NHWC), bench.seconds, bench.device, len(images_NHWC))
    detail = encoder_detail(bench)
    return measure_rate(name, work, bench.repeats, bench.device, limit=limit, detail=lambda: detail)


def encoder_detail(bench: Bench) -> dict[str, Any]:
    """Which encoder it is that a row is about."""
    backend = bench.worker.scorer.backend
    return {
        "backend": backend.name,
        "precision": backend.precision,
        "batch_size": bench.worker.scorer.batch_size,
        **gate_detail(bench.config),
    }


@contextmanager
def decoding(bench: Bench, batches: Iterable[EncodedBatch]) -> Iterator[Iterator[ImageBatch]]:
    """The decoder at work on `batches`, for as long as the block runs."""
    images = bench.worker.decoder.decode(batches)
    try:
        yield images
    finally:
        cast("Generator[ImageBatch]", images).close()


def first_pixels(bench: Bench) -> Tensor:
    """The first batch of the usual shards, decoded: uint8 [N, S, S, 3] on the device, the caller's own."""
    with decoding(bench, encoded_batches(bench, bench.config.input)) as batches:
        images_NHWC = next(batches).images_NHWC.clone()
        finish(bench.device)  # DALI may write over the original once the batch is gone
    return images_NHWC


def head_work(bench: Bench, head: torch.nn.Module, embed_dim: int) -> Work:
    """Embeddings on the device to scores on the device."""
    embeddings_ND = torch.randn(bench.worker.scorer.batch_size, embed_dim, device=bench.device)
    return for_seconds(lambda: head(embeddings_ND), bench.seconds / 4, bench.device, len(embeddings_ND))


def sink_work(bench: Bench, pattern: Sequence[str], keep: Threshold) -> Work:
    """Scored batches to committed shards: rows, kept entries, fsync, rename. Scores are uniform in 0..10."""
    rng = np.random.default_rng(0)
    batches = [
        ScoredBatch(
            encoded=batch,
            headers=batch.headers,
            scores_RH=rng.uniform(0, 10, (len(batch.samples), 1)).astype(np.float32),
        )
        for batch in encoded_batches(bench, pattern)
    ]

    def work() -> int:
        output = fresh(bench.folder / "sink")
        with ShardSink(output, ["random"], keep.keep) as sink:
            for batch in batches:
                sink.write(batch)
        return sum(len(batch.encoded.samples) for batch in batches)

    return work


def end_to_end_work(bench: Bench, pattern: Sequence[str], threshold: Threshold) -> Work:
    """From tars to committed output, model loading excluded; a fresh output each time."""

    def work() -> int:
        bench.last_run = run_once(bench, pattern, threshold)
        return bench.last_run.num_samples

    return work


def run_once(bench: Bench, pattern: Sequence[str], threshold: Threshold) -> RunStats:
    """The package's own loop over the shards, once. Raises RuntimeError where a shard failed."""
    worker, stats, course = bench.worker, RunStats(), []
    output = fresh(bench.folder / "output")
    with ShardSink(output, worker.scorer.head_names, threshold.keep) as sink:
        stages = Stages(
            limits=worker.limits,
            decoder=worker.decoder,
            scorer=worker.scorer,
            sink=sink,
        )
        for _ in run_shards(plan_shards(pattern), stages, stats):
            course.append((stats.seconds, stats.num_samples))
    finish(bench.device)
    stats.finish()
    bench.last_course = course
    if stats.failed:
        raise RuntimeError(f"{stats.failed[0].source} failed: {stats.failed[0].error}")
    return stats


def steady_rate(course: Sequence[tuple[float, int]]) -> float | None:
    """Samples per second of a run without its start and end: from a quarter of its samples to 95% of them.

    None where fewer than four shards were committed in between.
    """
    total = course[-1][1] if course else 0
    middle = [point for point in course if 0.25 * total <= point[1] <= 0.95 * total]
    if len({samples for _, samples in middle}) < 4:
        return None
    (start, first), (end, last) = middle[0], middle[-1]
    return (last - first) / (end - start)


def end_to_end_row(
    bench: Bench,
    name: str,
    pattern: Sequence[str],
    threshold: Threshold,
    limit: float | None = None,
    warm_ups: int = 1,
) -> Measured:
    """A run as a row: kept share, work by stage, what it was bound by."""
    work = end_to_end_work(bench, pattern, threshold)
    return measure_rate(
        name,
        work,
        bench.repeats,
        bench.device,
        warm_ups=warm_ups,
        limit=limit,
        detail=lambda: run_detail(bench.last_run),
    )


def run_detail(stats: RunStats) -> dict[str, Any]:
    """What a run says of itself, ready for JSON."""
    return {
        "samples": stats.num_samples,
        "kept": stats.num_kept,
        "bad": stats.num_bad,
        "work_seconds": {name: round(seconds, 3) for name, seconds in stats.work_times().items()},
        "bound_by": stats.bound_by(),
        "peak_host_mib": round(peak_host_mib()),
    }


def cut_for_share(bench: Bench, pattern: Sequence[str], share: float) -> Threshold:
    """The threshold that keeps `share` of these images, from the scores of one run."""
    import pyarrow.parquet as pq

    if share <= 0:
        return NOTHING
    if share >= 1:
        return EVERYTHING
    run_once(bench, pattern, NOTHING)
    table = pq.read_table(next((bench.folder / "output" / "scores").glob("*.parquet")))
    scores = table["aesthetic_score"].drop_null().to_numpy()
    return Threshold(raw=float(np.quantile(scores, 1 - share)))


def fresh(folder: Path) -> Path:
    """An empty folder in place of whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
