"""A worker of the package and the shards it is measured on: runs, rows of runs, and fp8's gate opened."""

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

from benchmarks.measure import Work, finish, for_seconds, measure_rate, peak_host_mib
from benchmarks.results import Measured
from benchmarks.settings import Settings
from dali_aesthetic.config import Config, GateConfig
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.launch.precision import prepare
from dali_aesthetic.launch.worker import Worker, build_worker, read_calibration
from dali_aesthetic.run_shard import Stages, run_shards
from dali_aesthetic.score.backends.calibration import Trial
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.stats import RunStats
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.types import EncodedBatch, ImageBatch
from dali_aesthetic.write.sink import ShardSink

NOTHING = Threshold(raw=1e30)
EVERYTHING = Threshold(raw=-1e30)


OPEN = {"max_mean_error": 9, "max_p99_error": 9, "max_flips": 2}
"""Limits that let every trial through. Random weights put the scores of all images close together, where the
cuts are: the gate measures as in any run, and its verdict is told and not obeyed."""


@dataclass(slots=True)
class Bench:
    """A worker, the shards it is measured on, and a folder for output.

    `seconds` is the length of a repeat of work that has no end of its own. `last_run` holds the totals of the
    latest run, `last_course` its seconds and samples at each commit of a shard.
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
        """A row of images/s."""
        return measure_rate(name, work, repeats or self.repeats, self.device, limit=limit)


def make_bench(settings: Settings, **model: Any) -> Bench:
    """A worker for these settings, and the usual shards; `model` overrides fields of its model section."""
    config = calibrated(settings.config(settings.datasets.make(), **model))
    return Bench(
        config=config,
        worker=build_worker(config),
        folder=settings.data,
        repeats=settings.num_repeats,
        seconds=settings.num_seconds,
    )


def encoded_batches(bench: Bench, pattern: Sequence[str]) -> Iterator[EncodedBatch]:
    """Batches of shards, read and with checked headers."""
    worker = bench.worker
    return fill_batches(read_shards(plan_shards(pattern)), worker.scorer.batch_size, worker.limits)


def encoder_row(
    bench: Bench, limit: float | None = None, name: str = "encoder", images_NHWC: Tensor | None = None
) -> Measured:
    """The encoder alone, from pixels to scores on the device; with random pixels unless they are given."""
    scorer = bench.worker.scorer
    shape = (scorer.batch_size, scorer.image_size, scorer.image_size, 3)
    if images_NHWC is None:
        images_NHWC = torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device)
    work = for_seconds(lambda: scorer.backend(images_NHWC), bench.seconds, bench.device, len(images_NHWC))
    detail = encoder_detail(bench)
    return measure_rate(name, work, bench.repeats, bench.device, limit=limit, detail=lambda: detail)


def encoder_detail(bench: Bench) -> dict[str, Any]:
    """The encoder of a row: backend, precision, batch size, and the gate's verdict on fp8."""
    backend = bench.worker.scorer.backend
    return {
        "backend": backend.name,
        "precision": backend.precision,
        "batch_size": bench.worker.scorer.batch_size,
        **gate_detail(bench.config),
    }


@contextmanager
def decoding(bench: Bench, batches: Iterable[EncodedBatch]) -> Iterator[Iterator[ImageBatch]]:
    """The decoder's output for `batches`; the decoder is stopped at the end of the block."""
    images = bench.worker.decoder.decode(batches)
    try:
        yield images
    finally:
        cast("Generator[ImageBatch]", images).close()


def first_pixels(bench: Bench) -> Tensor:
    """A copy of the first decoded batch of the usual shards: uint8 [N, S, S, 3] on the device."""
    with decoding(bench, encoded_batches(bench, bench.config.input)) as batches:
        images_NHWC = next(batches).images_NHWC.clone()
        finish(bench.device)  # DALI may overwrite the original once the batch is released
    return images_NHWC


def end_to_end_work(bench: Bench, pattern: Sequence[str], threshold: Threshold) -> Work:
    """From tars to committed output, into an empty folder each time; the model is loaded before."""

    def work() -> int:
        bench.last_run = run_once(bench, pattern, threshold)
        return bench.last_run.num_samples

    return work


def run_once(bench: Bench, pattern: Sequence[str], threshold: Threshold) -> RunStats:
    """Run the package's loop over the shards once. Raises RuntimeError if a shard failed."""
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
    """Samples per second of a run between a quarter and 95% of its samples, without its start and end.

    None if fewer than four shards were committed in between.
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
    """Whole runs as a row, with the totals of the last one."""
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
    """A run's counts, seconds of work by stage, and the stage that bound it."""
    return {
        "samples": stats.num_samples,
        "kept": stats.num_kept,
        "bad": stats.num_bad,
        "work_seconds": {name: round(seconds, 3) for name, seconds in stats.work_times().items()},
        "bound_by": stats.bound_by(),
        "peak_host_mib": round(peak_host_mib()),
    }


def cut_for_share(bench: Bench, pattern: Sequence[str], share: float) -> Threshold:
    """The threshold that keeps `share` of these images; takes one run to find out."""
    import pyarrow.parquet as pq

    if share <= 0:
        return NOTHING
    if share >= 1:
        return EVERYTHING
    run_once(bench, pattern, NOTHING)
    table = pq.read_table(next((bench.folder / "output" / "scores").glob("*.parquet")))
    scores = table["aesthetic_score"].drop_null().to_numpy()
    return Threshold(raw=float(np.quantile(scores, 1 - share)))


def share_to_threshold(kept: float) -> Threshold:
    """The threshold that keeps this share of scores that are uniform in 0..10."""
    return NOTHING if kept <= 0 else Threshold(raw=10 * (1 - kept))


def fresh(folder: Path) -> Path:
    """Empty a folder, or create it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def calibrated(config: Config) -> Config:
    """The config with scales measured on its own images, if it asks for fp8; they are kept beside the output.

    Raises ConfigError where fp8 can't run.
    """
    if config.model.precision != "fp8":
        return config
    # Not in the output: that is emptied for every run, while the scales serve all runs on these images.
    opened = config.model_copy(
        update={"gate": GateConfig(**OPEN), "output": f"{config.output}-{config.model.encoder}-scales"}
    )
    return config.model_copy(update={"model": prepare(opened, plan_shards(config.input)).model})


def gate_detail(config: Config) -> dict[str, Any]:
    """The gate's verdict on fp8 with its usual limits; empty for other precisions."""
    if not config.model.calibration:
        return {}
    choice = read_calibration(config.model.calibration).choice
    return {"gate": gate_verdict(choice.trials[-1])} if choice.trials else {}


def gate_verdict(trial: Trial) -> str:
    """`passed` or `opened`, and the errors with the usual limits."""
    usual = GateConfig()
    flips = max(trial.flips.values(), default=0.0)
    passes = (
        trial.mean_error <= usual.max_mean_error
        and trial.p99_error <= usual.max_p99_error
        and flips < usual.max_flips
    )
    return (
        f"{'passed' if passes else 'opened'}: "
        f"mean error {trial.mean_error:.4f} (limit {usual.max_mean_error:g}), "
        f"p99 {trial.p99_error:.4f} ({usual.max_p99_error:g}), "
        f"{100 * flips:.2g}% of decisions changed at the worst cut ({100 * usual.max_flips:g}%)"
    )
