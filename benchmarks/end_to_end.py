"""From tars on disk to committed output, by encoder, beside the encoder alone on the same pixels.

Each encoder runs in a process of its own. A row counts whole runs, from the first read to the last commit;
its `steady` row leaves out their start and end (`bench.steady_rate`). The limit of both is the encoder alone,
measured before and after the runs because heat lowers the clocks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.bench import (
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
from benchmarks.datasets import MEASURED, MIXTURES, link_shards, title_of
from benchmarks.measure import measure_rate
from benchmarks.processes import in_child
from benchmarks.results import Measured, Record
from benchmarks.settings import Settings
from benchmarks.stages import verdict
from dali_aesthetic.threshold import Threshold

ENCODER = "encoder only, same run"
USUAL = "end to end, 25% kept"
GPU_WAYS = (
    ("fused", "fp8"),
    ("auto", "fp16", "ViT-B-32-quickgelu"),
    ("fused", "fp16"),
    ("torchscript", "fp16"),
)
"""Backends, precisions and encoders that are measured beside the ones that are usual."""
_BOUND_S = 180
_TITLE_OF_KINDS = "kept shares and kinds"


def measure(settings: Settings) -> None:
    """From tars on disk to committed output, by encoder: mixtures of images, kept shares, single kinds."""
    record = settings.record("end-to-end")
    record.note("complete", measure_end_to_end(record, settings))


def measure_end_to_end(record: Record, settings: Settings) -> bool:
    """The usual encoder, then others, then other kept shares and inputs. Whether all of it is done."""
    bound_s = _BOUND_S * (1 if settings.quick and settings.on_gpu else 10)
    ended = [in_child(measure_encoder, record, settings, USUAL, bound_s=bound_s)]
    usual = record.row(ENCODER) or {}
    for way in other_ways(settings):
        if way != (usual.get("backend"), usual.get("precision")):
            title = named(USUAL, way)
            ended.append(in_child(measure_encoder, record, settings, title, *way, bound_s=bound_s))
    ended.append(in_child(measure_kinds, record, settings, _TITLE_OF_KINDS, bound_s=bound_s))
    return all(ended)


def other_ways(settings: Settings) -> Sequence[tuple[str, ...]]:
    """Other backends, precisions and encoders; none on a CPU or if the options name one."""
    chosen = (settings.backend, settings.precision) != ("auto", "auto")
    return () if chosen or not settings.on_gpu else GPU_WAYS


def named(name: str, way: Sequence[str]) -> str:
    """The name of a row of one of the `other_ways`; of the usual one if `way` is empty."""
    return ", ".join([name, *way[2:], " ".join(way[:2])] if way else [name])


def measure_encoder(record: Record, settings: Settings, *way: str) -> None:
    """An encoder alone, end to end with a quarter kept of each mixture, and alone again."""
    bench = make_bench(settings, **dict(zip(("backend", "precision", "encoder"), way, strict=False)))
    images_NHWC, name = first_pixels(bench), named("encoder only", way) if way else ENCODER
    before = encoder_row(bench, name=name, images_NHWC=images_NHWC)
    record.add(before)
    rate = statistics.median(before.values)
    titles = []
    for kind in ("baseline", *MIXTURES):
        pattern = long_input(settings, rate, kind)
        cut = cut_for_share(bench, (settings.datasets.make(kind),), 0.25)
        titles.append(named(USUAL if kind == "baseline" else f"end to end, {title_of(kind, 512)}", way))
        _add_runs(record, bench, titles[-1], pattern, cut, rate)
    _add_limit(record, bench, before, titles, images_NHWC)


def measure_kinds(record: Record, settings: Settings) -> None:
    """Other kept shares, then single kinds of images, once each."""
    bench = make_bench(settings)
    limit = record.row(ENCODER)
    rate = limit["median"] if limit else statistics.median(encoder_row(bench).values)
    bench.repeats = 1
    pattern = long_input(settings, rate)
    run_once(bench, bench.config.input, NOTHING)  # warm-up
    for share in (0.0, 1.0):
        if not record.has(name := f"end to end, {100 * share:.0f}% kept"):
            _add_runs(record, bench, name, pattern, cut_for_share(bench, pattern, share), rate)
    for kind, short_side in MEASURED[1:]:
        name = f"end to end, {title_of(kind, short_side)}"
        if kind not in MIXTURES and not record.has(name):
            pattern = long_input(settings, rate, kind, short_side)
            _add_runs(record, bench, name, pattern, NOTHING, rate)


def long_input(
    settings: Settings, rate: float, kind: str = "baseline", short_side: int = 512
) -> tuple[str, ...]:
    """Shards for some seconds at `rate`, so that start and end weigh little; half for other kinds."""
    spec = settings.datasets.spec(kind, short_side)
    source = Path(settings.datasets.make(kind, short_side)).parent / "bench-00000.tar"
    seconds = settings.num_seconds * (4 if kind == "baseline" and short_side == 512 else 2)
    count = max(settings.datasets.num_shards, math.ceil(seconds * rate / spec.distinct))
    return (link_shards(settings.data / "links" / spec.name, source, count),)


def _add_runs(
    record: Record, bench: Bench, name: str, pattern: Sequence[str], keep: Threshold, limit: float
) -> None:
    """Add a row of whole runs and, if they are long enough, one of their steady part."""
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


def _add_limit(
    record: Record, bench: Bench, before: Measured, titles: Sequence[str], images_NHWC: Tensor
) -> None:
    """Measure the encoder again, and set the median of both times as the limit of the runs' rows."""
    after = encoder_row(bench, name=before.name, images_NHWC=images_NHWC)
    both = [*before.values, *after.values]
    medians = [round(statistics.median(rates), 1) for rates in (before.values, after.values)]
    detail = {**before.detail, "before_and_after": medians}
    record.add(Measured(name=before.name, values=both, detail=detail, gpu=after.gpu))
    for title in titles:
        for name in (title, f"{title}, steady"):
            record.set_limit(name, statistics.median(both))
