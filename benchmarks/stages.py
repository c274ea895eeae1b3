"""Each stage by itself, decoding by kind of image; and what the stages of one run worked and waited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.bench import (
    NOTHING,
    Bench,
    cut_for_share,
    encoded_batches,
    encoder_row,
    fresh,
    make_bench,
    run_once,
    share_to_threshold,
)
from benchmarks.datasets import MEASURED, title_of
from benchmarks.measure import Work
from benchmarks.settings import Settings
from dali_aesthetic.overlap import ahead
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.stats import RunStats
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.types import ScoredBatch
from dali_aesthetic.write.sink import ShardSink

ADVICE = {
    "storage": "reading and checking the shards: a faster disk, or more workers per GPU",
    "decode: CPU cores": "progressive JPEG, PNG, WebP and others: more CPU cores, or the extra codecs",
    "decode: JPEG engine": "baseline JPEGs: more GPUs",
    "encode": "the encoder: this is the GPU at work, what a run should be bound by",
    "sink": "writing: a faster disk, or a higher threshold",
}


def measure(settings: Settings) -> None:
    """Each stage by itself; decoding by kind of image."""
    record, bench = settings.record("stages"), make_bench(settings)
    usual = bench.config.input
    works: dict[str, Callable[[], Work]] = {
        "scan": lambda: scan_work(usual),
        "scan + check": lambda: check_work(bench, usual),
    }
    for kind, short_side in MEASURED:
        pattern = (settings.datasets.make(kind, short_side),)
        works[f"decode {title_of(kind, short_side)}"] = partial(decode_work, bench, pattern)
    for share in (0.25, 1.0):
        works[f"sink, {100 * share:.0f}% kept"] = partial(sink_work, bench, usual, share_to_threshold(share))
    for name, make in works.items():
        if not record.has(name):
            record.add(bench.measure(name, make()))
    if not record.has("encoder"):
        record.add(encoder_row(bench))
    bench.worker.decoder.close()
    record.note("complete", True)


def print_stages(settings: Settings) -> None:
    """Run once and print how long each stage worked and waited, and which stage bound the run."""
    bench = make_bench(settings)
    run_once(bench, bench.config.input, NOTHING)
    stats = run_once(bench, bench.config.input, cut_for_share(bench, bench.config.input, 0.25))
    bench.worker.decoder.close()
    Console(highlight=False).print(stage_table(stats), verdict(stats))


def scan_work(pattern: Sequence[str]) -> Work:
    """Tar scan and grouping of samples."""
    shards = plan_shards(pattern)
    return lambda: sum(1 for _ in read_shards(shards)) - len(shards)


def check_work(bench: Bench, pattern: Sequence[str]) -> Work:
    """Tar scan, header check, grouping into batches."""
    return lambda: sum(len(batch.samples) for batch in encoded_batches(bench, pattern))


def decode_work(bench: Bench, pattern: Sequence[str]) -> Work:
    """Tar scan, header check, decode and resize of every image; nothing is encoded."""

    def work() -> int:
        batches = ahead(encoded_batches(bench, pattern), 2, "storage")
        return sum(len(batch.encoded.samples) for batch in bench.worker.decoder.decode(batches))

    return work


def sink_work(bench: Bench, pattern: Sequence[str], keep: Threshold) -> Work:
    """Scored batches to committed shards: rows, kept entries, fsync, rename. Scores are uniform, 0 to 10."""
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


def stage_table(stats: RunStats) -> Table:
    """Seconds of work and of waiting by stage."""
    table = Table("stage", "work s", "share", "waited, queue full, s", "waited, queue empty, s")
    work = stats.work_times()
    waits = {stage.name: (stage.blocked_on_full, stage.blocked_on_empty) for stage in stats.stages}
    for name, seconds in work.items():
        full, empty = waits.get(name, (0.0, 0.0))
        share = seconds / max(stats.seconds, 1e-9)
        table.add_row(name, f"{seconds:.2f}", f"{100 * share:.0f}%", f"{full:.2f}", f"{empty:.2f}")
    return table


def verdict(stats: RunStats) -> str:
    """One line: the rate, the stage that binds it, and the advice for that stage."""
    bound = stats.bound_by()
    rate = f"{stats.num_samples:,} samples in {stats.seconds:.1f} s, {stats.samples_per_second:,.0f} a second"
    return f"{rate}; bound by {bound}: {ADVICE.get(bound, 'nothing yet')}"
