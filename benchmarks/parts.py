"""The parts of a benchmark run: each measures one theme and writes one result file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks import datasets as kinds
from benchmarks.ceilings import measure_ceilings
from benchmarks.cold_start import measure_cold_start
from benchmarks.encoders import measure_encoders
from benchmarks.end_to_end import measure_end_to_end
from benchmarks.feed import measure_feed
from benchmarks.growth import CPU_BATCHES, GPU_BATCHES, batch_growth, shard_growth
from benchmarks.host import NUM_CORES, measure_host, profile_host, share_to_threshold
from benchmarks.open_gate import calibrated
from benchmarks.peers.side_by_side import make_job, measure_peers
from benchmarks.precision import precision
from benchmarks.raw_decode import load_images
from benchmarks.roofline import VIT_L_14
from benchmarks.scaling import scaling
from benchmarks.settings import Settings
from benchmarks.stores import measure_stores
from benchmarks.throughput import (
    NOTHING,
    check_work,
    cut_for_share,
    decode_work,
    encoder_row,
    make_bench,
    run_once,
    scan_work,
    sink_work,
)
from benchmarks.timing import Work
from benchmarks.where import stage_table, verdict
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.score.spec import spec_of

Part = Callable[[Settings], None]
console = Console(highlight=False)


def data(settings: Settings) -> None:
    """Make the shards of every kind, unless they are there."""
    for kind, short_side in kinds.KINDS:
        settings.datasets.make(kind, short_side)
        console.print(f"  {settings.datasets.spec(kind, short_side)}")
    settings.host_shards()
    make_job(settings)


def ceilings(settings: Settings) -> None:
    """What the hardware gives at most: GEMMs, memory, JPEG decoding."""
    record = settings.record("ceilings")
    images = load_images(settings.datasets.make(), Limits())
    measure_ceilings(
        record,
        spec_of(settings.encoder_name),
        images,
        settings.chip,
        batch_size=settings.batch_size or (256 if settings.on_gpu else 4),
        repeats=settings.num_repeats,
        seconds=settings.num_seconds / 4,
    )
    record.note("complete", True)


def encoders(settings: Settings) -> None:
    """The encoder in every backend and precision, and open_clip's own."""
    record = settings.record("encoders")
    measure_encoders(record, settings)
    record.note("complete", True)


def stages(settings: Settings) -> None:
    """Each stage by itself; decoding by kind of image."""
    record, bench = settings.record("stages"), make_bench(settings)
    usual = bench.config.input
    works: dict[str, Callable[[], Work]] = {
        "scan": lambda: scan_work(usual),
        "scan + check": lambda: check_work(bench, usual),
    }
    for kind, short_side in kinds.KINDS:
        pattern = (settings.datasets.make(kind, short_side),)
        works[f"decode {kinds.title(kind, short_side)}"] = partial(decode_work, bench, pattern)
    for share in (0.25, 1.0):
        works[f"sink, {100 * share:.0f}% kept"] = partial(sink_work, bench, usual, share_to_threshold(share))
    for name, make in works.items():
        if not record.has(name):
            record.add(bench.measure(name, make()))
    if not record.has("encoder"):
        record.add(encoder_row(bench))
    bench.worker.decoder.close()
    record.note("complete", True)


def end_to_end(settings: Settings) -> None:
    """From tars on disk to committed output, by encoder: kept shares, then kinds of images."""
    record = settings.record("end-to-end")
    record.note("complete", measure_end_to_end(record, settings))


def feed(settings: Settings) -> None:
    """What decoding delivers beside a busy encoder, which is what a run can be bound by."""
    record = settings.record("feed")
    record.note("complete", measure_feed(record, settings))


def ladder(settings: Settings) -> None:
    """Every way to run ViT-L/14 in one process, and its score errors. Needs a GPU."""
    if not settings.on_gpu:
        console.print("  the ladder needs a GPU: nothing measured")
        return
    from benchmarks.encoder_ladder import measure_ladder

    measure_ladder(settings)


def kernels(settings: Settings) -> None:
    """Every kernel of the fused encoder by itself, against what bounds it. Needs a Hopper GPU and QuACK."""
    from dali_aesthetic.score.backends.fits import why_not_fused

    if reason := why_not_fused(VIT_L_14, settings.chip, "fp8"):
        console.print(f"  the fused kernels can't run here, {reason}: nothing measured")
        return
    from benchmarks.kernels import measure_kernels

    record = settings.record("kernels")
    measure_kernels(
        record,
        VIT_L_14,
        settings.chip,
        batch_size=settings.batch_size or 1019,
        repeats=settings.num_repeats,
        seconds=settings.num_seconds / 4,
    )
    record.note("complete", True)


def stores(settings: Settings) -> None:
    """What reading from a store costs, against a server on loopback."""
    record = settings.record("stores")
    measure_stores(record, settings)
    record.note("complete", True)


def where(settings: Settings) -> None:
    """Run once and print what each stage worked and waited, and what the run was bound by."""
    bench = make_bench(settings)
    run_once(bench, bench.config.input, NOTHING)
    stats = run_once(bench, bench.config.input, cut_for_share(bench, bench.config.input, 0.25))
    bench.worker.decoder.close()
    console.print(stage_table(stats), verdict(stats))


def host(settings: Settings) -> None:
    """The host side alone, between null stages, on two cores."""
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
    """Where the host side's time goes, function by function (a profiler's overhead included)."""
    _, pattern = settings.host_shards()
    console.print(profile_host(pattern, settings.data, settings.batch_size or 512, lines=40))


def peers(settings: Settings) -> None:
    """Other programs for the same job, side by side on the same images, and ours."""
    record = settings.record("peers")
    measure_peers(record, settings)
    record.note("complete", True)


def growth(settings: Settings) -> None:
    """How cost grows with the batch size and the number of shards."""
    record = settings.record("growth")
    config = calibrated(settings.config(settings.datasets.make()))
    batches = list(GPU_BATCHES if settings.on_gpu else CPU_BATCHES)
    batches = batches[1::2] if settings.quick else batches
    batch_growth(record, config, settings.data, batches, 1, settings.num_seconds / 2)
    bench = make_bench(settings)
    bench.repeats = 1
    counts = (1, 100, 10_000) if settings.on_gpu else (1, 100) if settings.quick else (1, 10, 100, 1000)
    source = Path(settings.datasets.make()).parent / "bench-00000.tar"
    shard_growth(record, bench, source, settings.data / "small", counts, per_shard=8)
    bench.worker.decoder.close()
    record.note("complete", True)


def cold_start(settings: Settings) -> None:
    """From the start of a process to its first committed scores, with empty caches and with full ones."""
    record = settings.record("cold-start")
    measure_cold_start(record, settings)
    record.note("complete", True)


PARTS: dict[str, Part] = {
    "data": data,
    "end-to-end": end_to_end,
    "peers": peers,
    "feed": feed,
    "precision": precision,
    "ceilings": ceilings,
    "encoders": encoders,
    "cold-start": cold_start,
    "ladder": ladder,
    "kernels": kernels,
    "stages": stages,
    "growth": growth,
    "host": host,
    "scaling": scaling,
    "stores": stores,
    "where": where,
    "profile": profile,
}
"""By name, in the order of what a run that is cut off should still have."""
