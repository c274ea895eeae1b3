"""One GPU against several of the same host, through the package's launcher: images/s and efficiency.

Every GPU gets the same work, so that all run for as long. The rate is the sum of the workers' rates over the
time in which all of them worked: a worker's rate is the slope of its samples over time. Rates of whole runs,
with start and last shards, are in the detail.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.bench import NOTHING, fresh
from benchmarks.datasets import DatasetSpec, make_dataset
from benchmarks.machine import GpuSampler
from benchmarks.processes import descendants
from benchmarks.results import Measured
from benchmarks.settings import Settings
from dali_aesthetic.config import Config
from dali_aesthetic.launch.engine import RunResult
from dali_aesthetic.launch.run import run
from dali_aesthetic.overlap import cpu_count, every
from dali_aesthetic.stats import RunStats
from dali_aesthetic.threshold import Threshold

KEPT_SHARE = 0.1
_SAMPLE_SECONDS = 0.25
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Course:
    """Readings during a run: time, samples of each worker so far, CPU seconds of all processes.

    `gpus` are the medians of each of `devices` over the run.
    """

    devices: Sequence[torch.device] = ()
    gpus: list[dict[str, float]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    samples: list[dict[str, int]] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @contextmanager
    def watch(self, stats: RunStats, num_shards: int) -> Iterator[None]:
        """Read `stats` at intervals while the block runs."""

        def read() -> None:
            self.times.append(time.perf_counter())
            self.samples.append({name: tally.num_samples for name, tally in stats.workers.items()})
            self.cpu.append(tree_cpu_seconds(os.getpid()))

        with ExitStack() as stack:
            samplers = [stack.enter_context(GpuSampler(device)) for device in self.devices]
            stack.enter_context(every(_SAMPLE_SECONDS, read, "readings"))
            yield
        self.gpus = [sampler.medians() for sampler in samplers]

    def steady(self) -> slice:
        """The readings at which every worker had begun and none had ended."""
        names = sorted(set().union(*self.samples))
        counts_WT = np.array([[reading.get(name, 0) for reading in self.samples] for name in names])
        if not counts_WT.size:
            return slice(0, 0)
        first = int(np.max(np.argmax(counts_WT > 0, axis=1)))
        last = int(np.min(np.argmax(counts_WT == counts_WT[:, -1:], axis=1)))
        return slice(first, last + 1)

    def worker_rates(self) -> dict[str, float]:
        """Samples per second of each worker in the steady part. Raises ValueError if there is none."""
        part = self.steady()
        times_T = np.array(self.times[part])
        if len(times_T) < 4:
            raise ValueError(
                "the workers were never at work together for a second: give more shards or seconds"
            )
        names = sorted(self.samples[part.start])
        return {name: _slope(times_T, [one[name] for one in self.samples[part]]) for name in names}

    def cores_used(self) -> float:
        """CPU seconds per second of the launcher and all workers, in the steady part."""
        part = self.steady()
        return _slope(np.array(self.times[part]), self.cpu[part])


def measure(settings: Settings) -> None:
    """One GPU of this host, two, ... all, with a process each; on a CPU one worker and two."""
    settings = _with_precision(settings)
    record = settings.record("scaling")
    source = _shard(settings)
    counts = worker_counts(settings)
    record.note("note", _NOTE.format(seconds=settings.seconds or _seconds(settings), kept=100 * KEPT_SHARE))
    threshold, rate = _warm_up(settings, source)
    per_worker = max(2, round(rate * (settings.seconds or _seconds(settings)) / source.distinct))
    runs: dict[int, list[_Run]] = {count: [] for count in counts}
    for _ in range(settings.repeats or (1 if settings.quick else 2)):
        for count in counts:
            runs[count].append(_run(settings, source, count, per_worker * count, threshold))
            record.add(_row(runs, count))
    record.note("complete", True)


_NOTE = (
    "Every GPU (or CPU worker) gets the same number of images, about {seconds:g} s of work; {kept:g}% are "
    "kept. images/s: sum of the workers' rates while all of them were at work. The limit is the median of "
    "one worker times their number, so that its share is the efficiency."
)


@dataclass(frozen=True, slots=True)
class _Source:
    """A tar of `distinct` images in `folder`, which is linked as every shard."""

    folder: Path
    distinct: int


@dataclass(frozen=True, slots=True)
class _Run:
    result: RunResult
    course: Course
    wall_seconds: float

    @property
    def rate(self) -> float:
        return sum(self.course.worker_rates().values())


def worker_counts(settings: Settings) -> list[int]:
    """1, 2, 4, ... and all of them."""
    most = torch.cuda.device_count() if settings.on_gpu else min(2, cpu_count())
    return sorted({1, most} | {count for count in (2, 4) if count < most})


def _with_precision(settings: Settings) -> Settings:
    auto = settings.precision == "auto"
    return replace(settings, precision="fp16" if settings.on_gpu else "fp32") if auto else settings


def _seconds(settings: Settings) -> float:
    return (20.0 if not settings.quick else 8.0) if settings.on_gpu else 10.0


def _shard(settings: Settings) -> _Source:
    spec = DatasetSpec(distinct=settings.distinct or (1024 if settings.on_gpu else 64), num_shards=1)
    pattern = make_dataset(settings.data / "scaling", spec, cpu_count())
    return _Source(Path(pattern).parent, spec.distinct)


def _listed(source: _Source, num_shards: int) -> str:
    """A list file of `num_shards` links to the tar."""
    links = fresh(source.folder.with_name("scaling-links"))
    first = (source.folder / "bench-00000.tar").resolve()
    for number in range(num_shards):
        (links / f"{number:06d}.tar").symlink_to(first)
    listing = links.with_suffix(".txt")
    listing.write_text("".join(f"{links.resolve()}/{number:06d}.tar\n" for number in range(num_shards)))
    return f"@{listing}"


def _config(settings: Settings, listing: str, count: int, threshold: Threshold) -> Config:
    launch = {"gpus": count} if settings.on_gpu else {"workers": count}
    config = settings.config(listing)
    values = config.model_dump(exclude={"threshold", "launch"})
    output = str(fresh(settings.data / "scaling-output"))
    return Config.build(values | {"launch": launch, "output": output, "threshold": threshold})


def _warm_up(settings: Settings, source: _Source) -> tuple[Threshold, float]:
    """Run once, which fills the caches of compiled kernels; the threshold, and roughly a worker's rate."""
    import pyarrow.parquet as pq

    num_shards = 12 if settings.on_gpu else 2
    config = _config(settings, _listed(source, num_shards), 1, NOTHING)
    result = run(config)
    _check(result)
    table = pq.read_table(next((Path(config.output) / "scores").glob("*.parquet")))
    scores = table["aesthetic_score"].drop_null().to_numpy()
    return Threshold(raw=float(np.quantile(scores, 1 - KEPT_SHARE))), result.stats.samples_per_second


def _run(settings: Settings, source: _Source, count: int, num_shards: int, threshold: Threshold) -> _Run:
    config = _config(settings, _listed(source, num_shards), count, threshold)
    devices = [torch.device("cuda", index) for index in range(count)] if settings.on_gpu else []
    course, start = Course(devices=devices), time.perf_counter()
    result = run(config, watch=course.watch)
    wall = time.perf_counter() - start
    _check(result)
    return _Run(result, course, wall)


def _check(result: RunResult) -> None:
    if result.stats.failed or result.stats.incidents:
        raise RuntimeError(f"failed: {result.stats.failed}; {result.stats.incidents}")


def _row(runs: dict[int, list[_Run]], count: int) -> Measured:
    one = statistics.median(run.rate for run in runs[1])
    gpus = runs[count][-1].course.gpus
    unit = "GPU" if gpus else "CPU worker"
    return Measured(
        name=f"{count} {unit}{'s' if count > 1 else ''}",
        values=[run.rate for run in runs[count]],
        limit=one * count,
        detail=_detail(runs[count]),
        gpu=gpus[0] if gpus else {},
    )


def _detail(runs: Sequence[_Run]) -> dict[str, Any]:
    """Figures of the last run, and medians of whole runs, without the start and with it."""
    last = runs[-1]
    stats = last.result.stats
    return {
        "workers": {name: round(rate, 1) for name, rate in last.course.worker_rates().items()},
        "gpus": last.course.gpus,
        "host_cores_used": round(last.course.cores_used(), 2),
        "whole_run_images_per_second": _median(run.result.stats.samples_per_second for run in runs),
        "with_start_images_per_second": _median(
            run.result.stats.num_samples / run.wall_seconds for run in runs
        ),
        "start_seconds": _median(run.wall_seconds - run.result.stats.seconds for run in runs),
        "samples": stats.num_samples,
        "kept": stats.num_kept,
        "seconds": round(stats.seconds, 2),
        "bound_by": stats.bound_by(),
        "work_seconds": {name: round(seconds, 2) for name, seconds in stats.work_times().items()},
    }


def _median(values: Iterator[float]) -> float:
    return round(statistics.median(values), 2)


def _slope(times_T: npt.NDArray[np.float64], values: Sequence[float]) -> float:
    """Least squares, as readings come at irregular times and samples in batches."""
    return float(np.polyfit(times_T - times_T[0], np.asarray(values, np.float64), 1)[0])


def tree_cpu_seconds(pid: int) -> float:
    """User and system time of a process and of all processes below it that still run."""
    return sum(map(_cpu_seconds, [pid, *descendants(pid)]))


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS
