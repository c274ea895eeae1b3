"""From tars on disk to committed output, by encoder, beside what it does alone on the same pixels.

Every encoder runs in a process of its own, as in a run. `of the limit` of a row is its share of the encoder
alone, which is measured before and after the runs: heat lowers the clocks. A row counts whole runs, from the
first read to the last commit; its `steady` one leaves their start and end out (`throughput.steady_rate`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from benchmarks import datasets as kinds
from benchmarks.child import in_child
from benchmarks.dataset import link_shards
from benchmarks.record import Measured, Record
from benchmarks.settings import Settings
from benchmarks.throughput import (
    NOTHING,
    Bench,
    cut_for_share,
    encoder_detail,
    encoder_row,
    end_to_end_work,
    first_pixels,
    make_bench,
    run_detail,
    run_once,
    steady_rate,
)
from benchmarks.timing import measure_rate
from benchmarks.where import verdict
from dali_aesthetic.threshold import Threshold

ENCODER = "encoder only, same run"
USUAL = "end to end, 25% kept"
GPU_WAYS = (("fused", "fp16"), ("fused", "fp8"), ("torchscript", "fp16"))
"""Backends and precisions that are measured beside the one that is taken by itself."""
FASTEST = ("fused", "fp8")
PROGRESSIVE = f"{USUAL}, 30% progressive, {' '.join(FASTEST)}"
"""Progressive JPEGs have no hardware to decode them: the fastest encoder feels it first."""
_BOUND_S = 120
_TITLE_OF_KINDS = "kept shares and kinds"


def measure_end_to_end(record: Record, settings: Settings) -> bool:
    """The usual encoder first, then others, then what else may be kept and read. Whether all is done."""
    bound_s = _BOUND_S * (1 if settings.quick and settings.on_gpu else 10)
    ended = [in_child(measure_encoder, record, settings, USUAL, bound_s=bound_s)]
    usual = record.row(ENCODER) or {}
    for backend, precision in other_ways(settings):
        if (backend, precision) != (usual.get("backend"), usual.get("precision")):
            title = f"{USUAL}, {backend} {precision}"
            words = (title, backend, precision)
            ended.append(in_child(measure_encoder, record, settings, *words, bound_s=bound_s))
    ended.append(in_child(measure_kinds, record, settings, _TITLE_OF_KINDS, bound_s=bound_s))
    if FASTEST in other_ways(settings):
        ended.append(in_child(measure_progressive, record, settings, PROGRESSIVE, *FASTEST, bound_s=bound_s))
    return all(ended)


def other_ways(settings: Settings) -> Sequence[tuple[str, str]]:
    """None where one is asked for, and none on a CPU."""
    chosen = (settings.backend, settings.precision) != ("auto", "auto")
    return () if chosen or not settings.on_gpu else GPU_WAYS


def measure_encoder(record: Record, settings: Settings, backend: str = "", precision: str = "") -> None:
    """An encoder alone, a quarter kept end to end, and the encoder again; without a name the usual one."""
    other = f"{backend} {precision}" if backend else ""
    bench = make_bench(settings, **({"backend": backend, "precision": precision} if backend else {}))
    images_NHWC, name = first_pixels(bench), f"encoder only, {other}" if other else ENCODER
    before = encoder_row(bench, name=name, images_NHWC=images_NHWC)
    record.add(before)
    cut = cut_for_share(bench, bench.config.input[:1], 0.25)
    title = f"{USUAL}, {other}" if other else USUAL
    rate = statistics.median(before.values)
    _add_runs(record, bench, title, long_input(settings, rate), cut, rate)
    _add_limit(record, bench, before, title, images_NHWC)


def measure_kinds(record: Record, settings: Settings) -> None:
    """The other shares kept, then the other kinds of images, once each."""
    bench = make_bench(settings)
    limit = record.row(ENCODER)
    rate = limit["median"] if limit else statistics.median(encoder_row(bench).values)
    bench.repeats = 1
    pattern = long_input(settings, rate)
    run_once(bench, bench.config.input, NOTHING)  # warm-up
    for share in (0.0, 1.0):
        if not record.has(name := f"end to end, {100 * share:.0f}% kept"):
            _add_runs(record, bench, name, pattern, cut_for_share(bench, pattern, share), rate)
    for kind, short_side in kinds.KINDS[1:]:
        if not record.has(name := f"end to end, {kinds.title(kind, short_side)}"):
            pattern = long_input(settings, rate, kind, short_side)
            _add_runs(record, bench, name, pattern, NOTHING, rate)


def measure_progressive(record: Record, settings: Settings, backend: str, precision: str) -> None:
    """A quarter kept end to end where three of ten JPEGs are progressive, by this encoder."""
    bench = make_bench(settings, backend=backend, precision=precision)
    limit = record.row(f"encoder only, {backend} {precision}")
    rate = limit["median"] if limit else statistics.median(encoder_row(bench).values)
    pattern = long_input(settings, rate, "progressive-30")
    _add_runs(record, bench, PROGRESSIVE, pattern, cut_for_share(bench, pattern, 0.25), rate)


def long_input(
    settings: Settings, rate: float, kind: str = "baseline", short_side: int = 512
) -> tuple[str, ...]:
    """Shards for some seconds at `rate`, so that a run's start and end weigh little; other kinds get half."""
    spec = settings.datasets.spec(kind, short_side)
    source = Path(settings.datasets.make(kind, short_side)).parent / "bench-00000.tar"
    seconds = settings.num_seconds * (4 if kind == "baseline" and short_side == 512 else 2)
    count = max(settings.datasets.num_shards, math.ceil(seconds * rate / spec.distinct))
    return (link_shards(settings.data / "links" / spec.name, source, count),)


def _add_runs(
    record: Record, bench: Bench, name: str, pattern: Sequence[str], keep: Threshold, limit: float
) -> None:
    """The row of whole runs and, where these are long enough, that of their steady part."""
    steady: list[float] = []
    once = end_to_end_work(bench, pattern, keep)

    def work() -> int:
        count = once()
        if rate := steady_rate(bench.last_course):
            steady.append(rate)
        return count

    row = measure_rate(
        name,
        work,
        bench.repeats,
        bench.device,
        warm_ups=0,
        limit=limit,
        detail=lambda: {**encoder_detail(bench), **run_detail(bench.last_run)},
    )
    record.add(row)
    if steady:
        record.add(Measured(name=f"{name}, steady", values=steady, limit=limit, detail=encoder_detail(bench)))
    print(f"    {verdict(bench.last_run)}", flush=True)


def _add_limit(record: Record, bench: Bench, before: Measured, title: str, images_NHWC: Tensor) -> None:
    """The encoder once more, and the runs' rows with the median of both as their limit."""
    after = encoder_row(bench, name=before.name, images_NHWC=images_NHWC)
    both = [*before.values, *after.values]
    medians = [round(statistics.median(rates), 1) for rates in (before.values, after.values)]
    detail = {**before.detail, "before_and_after": medians}
    record.add(Measured(name=before.name, values=both, detail=detail, gpu=after.gpu))
    for name in (title, f"{title}, steady"):
        record.set_limit(name, statistics.median(both))
