"""The parts of a benchmark run: each measures one theme and writes one result file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks import datasets as kinds
from benchmarks.ceilings import measure_ceilings
from benchmarks.cold_start import measure_cold_start
from benchmarks.encoders import calibrated, measure_encoders
from benchmarks.growth import CPU_BATCHES, GPU_BATCHES, batch_growth, shard_growth
from benchmarks.host import NUM_CORES, measure_host, profile_host, share_to_threshold
from benchmarks.peers.side_by_side import make_job, measure_peers
from benchmarks.precision import precision
from benchmarks.raw_decode import load_images
from benchmarks.scaling import scaling
from benchmarks.settings import Settings
from benchmarks.throughput import (
    NOTHING,
    Bench,
    check_work,
    cut_for_share,
    decode_work,
    encoder_row,
    end_to_end_row,
    run_once,
    scan_work,
    sink_work,
)
from benchmarks.where import stage_table, verdict
from dali_aesthetic.decode.probe import Limits
from dali_aesthetic.launch.worker import build_worker
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
    measure_encoders(record, settings, settings.datasets.make())
    record.note("complete", True)


def stages(settings: Settings) -> None:
    """Each stage by itself; decoding by kind of image."""
    record, bench = settings.record("stages"), make_bench(settings)
    usual = bench.config.input
    for name, work in (("scan", scan_work(usual)), ("scan + check", check_work(bench, usual))):
        record.add(bench.measure(name, work))
    for kind, short_side in kinds.KINDS:
        pattern = (settings.datasets.make(kind, short_side),)
        record.add(bench.measure(f"decode {kind} {short_side} px", decode_work(bench, pattern)))
    record.add(encoder_row(bench))
    for share in (0.25, 1.0):
        work = sink_work(bench, usual, share_to_threshold(share))
        record.add(bench.measure(f"sink, {100 * share:.0f}% kept", work))
    bench.worker.decoder.close()
    record.note("complete", True)


def end_to_end(settings: Settings) -> None:
    """From tars on disk to committed output: kept shares, then kinds of images."""
    record, bench = settings.record("end-to-end"), make_bench(settings)
    limit = encoder_row(bench, name="encoder only, same run")
    record.add(limit)
    rate = limit.as_row()["median"]
    for share in (0.25, 0.0, 1.0):
        cut = cut_for_share(bench, bench.config.input, share)
        name = f"end to end, {100 * share:.0f}% kept"
        record.add(end_to_end_row(bench, name, bench.config.input, cut, rate))
    console.print(stage_table(bench.last_run), verdict(bench.last_run))
    bench.repeats = 1
    for kind, short_side in kinds.KINDS[1:]:
        pattern = (settings.datasets.make(kind, short_side),)
        name = f"end to end, {kind} {short_side} px"
        record.add(end_to_end_row(bench, name, pattern, NOTHING, rate))
    bench.worker.decoder.close()
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
    config = settings.config(settings.datasets.make())
    batches = list(GPU_BATCHES if settings.on_gpu else CPU_BATCHES)
    batches = batches[1::2] if settings.quick else batches
    batch_growth(record, config, settings.data, batches, 1, settings.num_seconds / 2)
    bench = make_bench(settings)
    bench.repeats = 1
    counts = (1, 100) if settings.quick else (1, 10, 100, 1000, 10_000)
    source = Path(settings.datasets.make()).parent / "bench-00000.tar"
    shard_growth(record, bench, source, settings.data / "small", counts, per_shard=32)
    bench.worker.decoder.close()
    record.note("complete", True)


def cold_start(settings: Settings) -> None:
    """From the start of a process to its first committed scores, with empty caches and with full ones."""
    record = settings.record("cold-start")
    measure_cold_start(record, settings)
    record.note("complete", True)


def make_bench(settings: Settings) -> Bench:
    """The worker of these settings and its usual shards."""
    config = calibrated(settings.config(settings.datasets.make()))
    return Bench(
        config=config,
        worker=build_worker(config),
        folder=settings.data,
        repeats=settings.num_repeats,
        seconds=settings.num_seconds,
    )


PARTS: dict[str, Part] = {
    "data": data,
    "host": host,
    "ceilings": ceilings,
    "encoders": encoders,
    "end-to-end": end_to_end,
    "peers": peers,
    "stages": stages,
    "growth": growth,
    "precision": precision,
    "cold-start": cold_start,
    "scaling": scaling,
    "where": where,
    "profile": profile,
}
"""By name, in the order that `all` goes through those of them that write a result."""
IN_ALL = ("data", "host", "ceilings", "encoders", "end-to-end", "peers", "stages", "growth")
