"""Throughput and score error of every encoder on one GPU, in one process: the ladder of docs/benchmarks.md.

Rows run in turns, so that heat and power are the same for all; a row's number is the median of its batches.
Weights and images are synthetic. Score errors are against the eager tower in float32 with TF32 off.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.encoder_rows import Scorer, build_all, is_prepared, makers, prepare, reference, state_of
from benchmarks.ladder_table import ladder_markdown
from benchmarks.machine import slug
from benchmarks.settings import Settings
from benchmarks.synthetic import DEVICE, synthetic_images

BATCH, PLAIN_BATCH = 1019, 256
"""Images at a time, where fused and where not."""
LEFT_OUT_WHEN_QUICK = ("tuned",)
"""Parts of the names of rows that take minutes to build."""


@dataclass(frozen=True)
class Row:
    """One line of the ladder. Times are microseconds an image; watts and megahertz are medians."""

    name: str
    batch: int
    microseconds: float
    images_per_second: float
    watts: float
    megahertz: float


@dataclass(frozen=True)
class ScoreError:
    """Differences of raw scores. `spread` is the reference's deviation; `flips` the most at its quartiles."""

    name: str
    weights: str
    mean: float
    p99: float
    largest: float
    bias: float
    flips: float
    spread: float


class Meter:
    """Watts and megahertz of the first GPU while rows run."""

    def __init__(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._nvml, self._gpu = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)

    def read(self) -> tuple[float, float]:
        """Watts, megahertz."""
        watts = self._nvml.nvmlDeviceGetPowerUsage(self._gpu) / 1000
        return watts, float(self._nvml.nvmlDeviceGetClockInfo(self._gpu, self._nvml.NVML_CLOCK_SM))

    def describe(self) -> str:
        """Name, driver, torch and CUDA."""
        driver = self._nvml.nvmlSystemGetDriverVersion()
        return f"{torch.cuda.get_device_name()}, driver {driver}, torch {torch.__version__}"


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    return before, after


def run_for(
    scorer: Scorer, images: Tensor, seconds: float, meter: Meter
) -> tuple[list[float], list[tuple[float, float]]]:
    """Milliseconds of each batch over so many seconds, and what the meter showed."""
    times, readings = [], []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before, after = _events()
        before.record()
        scorer(images)
        after.record()
        readings.append(meter.read())
        after.synchronize()
        times.append(before.elapsed_time(after))
    return times, readings


@torch.inference_mode()
def ladder(
    scorers: dict[str, tuple[Scorer, int]], seconds: float, turns: int, meter: Meter
) -> Iterator[list[Row]]:
    """Every scorer in turns, the rows so far after each; the first batches of a turn are not counted."""
    images = synthetic_images(max(batch for _, batch in scorers.values()), seed=4)
    found: dict[str, tuple[list[float], list[tuple[float, float]]]] = {name: ([], []) for name in scorers}
    for _ in range(turns):
        for name, (scorer, batch) in scorers.items():
            pixels = prepare(images[:batch]) if is_prepared(name) else images[:batch]
            run_for(scorer, pixels, seconds / 3, meter)
            times, readings = run_for(scorer, pixels, seconds, meter)
            found[name][0].extend(times)
            found[name][1].extend(readings[len(readings) // 2 :])
        yield [_row(name, scorers[name][1], *found[name]) for name in scorers]


def _row(name: str, batch: int, times: list[float], readings: list[tuple[float, float]]) -> Row:
    milliseconds = statistics.median(times)
    watts, megahertz = (statistics.median(column) for column in zip(*readings, strict=True))
    return Row(name, batch, milliseconds * 1e3 / batch, batch / milliseconds * 1e3, watts, megahertz)


@torch.inference_mode()
def score_errors(
    scorers: dict[str, Scorer], weights: str, expected_NH: Tensor, images: Tensor
) -> list[ScoreError]:
    """Errors of each scorer on the same images."""
    rows = []
    cuts = torch.quantile(expected_NH, torch.tensor([0.25, 0.5, 0.75], device=DEVICE))
    for name, scorer in scorers.items():
        made = prepare if is_prepared(name) else torch.clone
        scores = torch.cat([scorer(made(part)) for part in torch.split(images, 256)])
        off = scores - expected_NH
        flips = torch.stack([((scores > cut) != (expected_NH > cut)).float().mean() for cut in cuts]).max()
        size = off.abs()
        numbers = (size.mean(), size.quantile(0.99), size.max(), off.mean(), flips, expected_NH.std())
        rows.append(ScoreError(name, weights, *(float(number) for number in numbers)))
    return rows


def matmul_teraflops(dtype: torch.dtype) -> float:
    """Sustained on 8192^3: the chip's practical ceiling in this very run."""
    a, b = (torch.randn(8192, 8192, device=DEVICE).to(dtype) for _ in range(2))
    one = torch.ones((), device=DEVICE)

    def once() -> None:
        if dtype == torch.float16:
            torch.mm(a, b)
        else:
            torch._scaled_mm(a, b.T, one, one, out_dtype=torch.float16, use_fast_accum=True)

    for _ in range(150):
        once()
    before, after = _events()
    before.record()
    for _ in range(300):
        once()
    after.record()
    after.synchronize()
    return float(300 * 2 * 8192**3 / before.elapsed_time(after) / 1e9)


def measure_ladder(settings: Settings) -> Path:
    """Measures, and writes the JSON as it goes and, beside it, its tables; where the JSON is."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    batch, left_out = settings.batch_size or BATCH, LEFT_OUT_WHEN_QUICK if settings.quick else ()
    date, meter = time.strftime("%Y-%m-%d"), Meter()
    path = settings.results / f"encoder_{slug(settings.chip)}_{date}.json"
    result: dict[str, Any] = {"device": meter.describe(), "date": date, "settings": settings.named()}
    result |= {"ladder": [], "errors": []}
    result["matmul_teraflops"] = {
        "fp16": matmul_teraflops(torch.float16),
        "fp8": matmul_teraflops(torch.float8_e4m3fn),
    }
    scorers, starts, skipped = build_all(makers(False, batch, PLAIN_BATCH), left_out)
    result |= {"start_seconds": starts, "skipped": skipped}
    for rows in ladder(scorers, settings.num_seconds / 2, settings.num_repeats, meter):
        result["ladder"] = [asdict(row) for row in rows]
        _write(path, result)
    checked = {name: scorers[name][0] for name in scorers if not name.startswith("open_clip")}
    del scorers
    images = synthetic_images(512 if settings.quick else 1024, seed=2)
    for weights in ("random", "outliers"):
        with torch.inference_mode():
            expected_NH = reference(state_of(weights == "outliers"))(images)
        if weights == "outliers":
            checked = {}
            torch.cuda.empty_cache()
            checked = _with_outliers(left_out)
        errors = score_errors(checked, weights, expected_NH, images)
        result["errors"] += [asdict(error) for error in errors]
        _write(path, result)
    _write(path, result | {"complete": True})
    print(ladder_markdown(result))
    return path


def _with_outliers(left_out: tuple[str, ...]) -> dict[str, Scorer]:
    """The rows whose errors are worth knowing with weights that are hard to round."""
    rows = makers(True, PLAIN_BATCH, PLAIN_BATCH)
    wanted = {name: rows[name] for name in rows if name == "eager fp16" or name.startswith("fused")}
    made, _, _ = build_all(wanted, left_out)
    return {name: scorer for name, (scorer, _) in made.items()}


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")  # its time may be over in the middle of a write
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)
    path.with_suffix(".md").write_text(ladder_markdown(result))
