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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.ladder_table import ladder_markdown
from benchmarks.synthetic import DEVICE, SPEC, head_bank, synthetic_images, tower_state
from dali_aesthetic.score.clip import Block, VisionTower, normalize
from dali_aesthetic.score.fast import folding, fused, fused_fp8

Scorer = Callable[[Tensor], Tensor]
"""Pixels to scores [N, H]: uint8 [N, S, S, 3], or for eager models what `prepare` makes of them."""


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


def tower_of(state: dict[str, Tensor]) -> VisionTower:
    """A float32 tower on the GPU with its own copy of the weights."""
    return VisionTower.from_state(SPEC, {k: v.clone() for k, v in state.items()}).to(DEVICE)


def reference(state: dict[str, Tensor]) -> Scorer:
    """The eager tower in float32."""
    tower, heads = tower_of(state), head_bank()
    return lambda images: torch.cat([heads(tower(normalize(part, SPEC))) for part in torch.split(images, 64)])


def prepare(images: Tensor) -> Tensor:
    """Normalised float16 pixels [N, 3, S, S]: what eager models are given, outside of their time."""
    return normalize(images, SPEC, torch.float16)


def eager(state: dict[str, Tensor]) -> Scorer:
    """The eager tower in float16, on prepared pixels."""
    tower, heads = tower_of(state).half(), head_bank()
    return lambda pixels: heads(tower(pixels))


def open_clip_eager(precision: str) -> Scorer:
    """open_clip's own model, with random weights of its own, on prepared pixels.

    Its `fp16` keeps LayerNorms in float32; its `pure_fp16` is faster.
    """
    import open_clip

    model = open_clip.create_model(SPEC.name, precision=precision, device=DEVICE).visual.eval()
    heads = head_bank()
    return lambda pixels: heads(model(pixels))


def backend_scorer(backend: fused.FusedBackend) -> Scorer:
    """A backend without its embeddings."""
    return lambda images: backend(images)[0]


def fused_fp16(state: dict[str, Tensor], batch: int, deferred: bool = True) -> Scorer:
    """The fused backend; with `deferred` off, with LayerNorm passes."""
    if deferred:
        return backend_scorer(fused.build(tower_of(state), head_bank(), DEVICE, "fp16", batch))
    tower = tower_of(state)
    blocks = [folding.fold_block(block) for block in tower.blocks[:-1] if isinstance(block, Block)]
    encoder = fused.FusedEncoder(tower, fused.NormPasses(blocks, torch.float16), torch.float16)
    work = fused.Workspace.make(SPEC, batch, DEVICE, torch.float16)
    return backend_scorer(fused.FusedBackend(encoder, head_bank(), work, "fp16"))


def float8(state: dict[str, Tensor], batch: int) -> Scorer:
    """The float8 backend, calibrated on images of its own."""
    images = synthetic_images(fused_fp8.CALIBRATION_IMAGES, seed=3)
    return backend_scorer(fused_fp8.build(tower_of(state), head_bank(), DEVICE, batch, images))


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
            pixels = prepare(images[:batch]) if "eager" in name else images[:batch]
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
        made = prepare if "eager" in name else torch.clone
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
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--images", type=int, default=512, help="for the score errors")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    meter = Meter()
    state, hard = tower_state(outliers=False), tower_state(outliers=True)
    batch = args.batch
    scorers = {
        "open_clip eager pure fp16": (open_clip_eager("pure_fp16"), 256),
        "open_clip eager fp16": (open_clip_eager("fp16"), 256),
        "eager fp16": (eager(state), 256),
        "fused fp16, LayerNorm passes": (fused_fp16(state, batch, deferred=False), batch),
        "fused fp16": (fused_fp16(state, batch), batch),
        "fused fp8": (float8(state, batch), batch),
    }
    rows = ladder(scorers, args.seconds, args.turns, meter)
    images = synthetic_images(args.images, seed=2)
    with torch.inference_mode():
        expected = {"random": reference(state)(images), "outliers": reference(hard)(images)}
    checked = {name: scorers[name][0] for name in scorers if not name.startswith("open_clip")}
    errors = score_errors(checked, "random", expected["random"], images)
    del scorers, checked
    torch.cuda.empty_cache()
    again = {"eager fp16": eager(hard), "fused fp16": fused_fp16(hard, 256), "fused fp8": float8(hard, 256)}
    errors += score_errors(again, "outliers", expected["outliers"], images)
    result = {
        "device": meter.describe(),
        "date": time.strftime("%Y-%m-%d"),
        "ladder": [asdict(row) for row in rows],
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
