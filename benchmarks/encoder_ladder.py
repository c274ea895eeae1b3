"""Encoder throughput and score error of every backend on one GPU, in one process: the ladder of the README.

Usage: python -m benchmarks.encoder_ladder --output benchmarks/results/encoder.json [--batch 1019]

Rows run in turns, so that heat and power are the same for all; a row's number is the median of its batches.
Weights and images are synthetic. Score errors are against the eager tower in float32 with TF32 off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.encoder_rows import Scorer, build_all, is_prepared, makers, prepare, reference, state_of
from benchmarks.ladder_table import ladder_markdown
from benchmarks.synthetic import DEVICE, synthetic_images


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
def ladder(scorers: dict[str, tuple[Scorer, int]], seconds: float, turns: int, meter: Meter) -> list[Row]:
    """Every scorer in turns; the first batches of a turn are not counted."""
    images = synthetic_images(max(batch for _, batch in scorers.values()), seed=4)
    found: dict[str, tuple[list[float], list[tuple[float, float]]]] = {name: ([], []) for name in scorers}
    for _ in range(turns):
        for name, (scorer, batch) in scorers.items():
            pixels = prepare(images[:batch]) if is_prepared(name) else images[:batch]
            run_for(scorer, pixels, seconds / 3, meter)
            times, readings = run_for(scorer, pixels, seconds, meter)
            found[name][0].extend(times)
            found[name][1].extend(readings[len(readings) // 2 :])
    return [_row(name, scorers[name][1], *found[name]) for name in scorers]


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


def main() -> None:
    """Measures and writes the JSON and, beside it, its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=1019)
    parser.add_argument("--plain-batch", type=int, default=256, help="of what isn't fused")
    parser.add_argument("--without", nargs="*", default=[], help="rows whose name has one of these in it")
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--images", type=int, default=512, help="for the score errors")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    meter = Meter()
    scorers, starts, skipped = build_all(makers(False, args.batch, args.plain_batch), args.without)
    rows = ladder(scorers, args.seconds, args.turns, meter)
    images = synthetic_images(args.images, seed=2)
    with torch.inference_mode():
        expected = {hard: reference(state_of(hard))(images) for hard in (False, True)}
    checked = {name: scorers[name][0] for name in scorers if not name.startswith("open_clip")}
    errors = score_errors(checked, "random", expected[False], images)
    del scorers, checked
    torch.cuda.empty_cache()
    hard_rows = makers(True, 256, 256)
    wanted = {name: hard_rows[name] for name in hard_rows if name == "eager fp16" or name.startswith("fused")}
    again, _, _ = build_all(wanted, args.without)
    errors += score_errors(
        {name: made[0] for name, made in again.items()}, "outliers", expected[True], images
    )
    result = {
        "device": meter.describe(),
        "date": time.strftime("%Y-%m-%d"),
        "ladder": [asdict(row) for row in rows],
        "start_seconds": starts,
        "skipped": skipped,
        "errors": [asdict(error) for error in errors],
        "matmul_teraflops": {
            "fp16": matmul_teraflops(torch.float16),
            "fp8": matmul_teraflops(torch.float8_e4m3fn),
        },
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(ladder_markdown(result))
    print(ladder_markdown(result))


if __name__ == "__main__":
    main()
