"""The encoder ladder: every way to run ViT-L/14 on a GPU in one process, its throughput and its score errors.

Rows run in turns, so that heat and power are the same for all; a row is the median of its batches. Weights
and images are synthetic. Score errors are against the eager tower in float32 with TF32 off.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.encoder_tables import ladder_page
from benchmarks.machine import slug
from benchmarks.roofline import VIT_L_14
from benchmarks.settings import Settings
from dali_aesthetic.score.backends import calibrate, folding, fused, fused_fp8, plain
from dali_aesthetic.score.backends.backend import Backend, build_backend
from dali_aesthetic.score.backends.calibration import Calibration
from dali_aesthetic.score.backends.workspace import Workspace
from dali_aesthetic.score.clip import VisionTower, normalize
from dali_aesthetic.score.gate import GateLimits
from dali_aesthetic.score.head import Head, HeadBank, head_from_state
from dali_aesthetic.score.weights import random_head_state, random_tower_state

SPEC = VIT_L_14
DEVICE = torch.device("cuda")
BATCH, PLAIN_BATCH = 1019, 256
"""Batch sizes of the fused backends and of the others."""
LEFT_OUT_WHEN_QUICK = ("tuned",)
"""Parts of the names of rows that take minutes to build."""
Scorer = Callable[[Tensor], Tensor]
"""From pixels, uint8 [N, S, S, 3] or as `prepare` returns them, to scores [N, H]."""


@dataclass(frozen=True)
class Row:
    """A row of the ladder. `microseconds` are for an image; watts and megahertz are medians."""

    name: str
    batch: int
    microseconds: float
    images_per_second: float
    watts: float
    megahertz: float


@dataclass(frozen=True)
class ScoreError:
    """Differences of raw scores. `spread` is the reference's deviation, `flips` the largest share of changed
    decisions at its quartiles."""

    name: str
    weights: str
    mean: float
    p99: float
    largest: float
    bias: float
    flips: float
    spread: float


def measure(settings: Settings) -> None:
    """Every way to run ViT-L/14 in one process, and its score errors. Needs a GPU."""
    if settings.on_gpu:
        measure_ladder(settings)
    else:
        print("  the ladder needs a GPU: nothing measured")


def measure_ladder(settings: Settings) -> Path:
    """Measure, and write the JSON and its page after every step; returns the path of the JSON."""
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
            expected_NH = reference(tower_state(weights == "outliers"))(images)
        if weights == "outliers":
            checked = {}
            torch.cuda.empty_cache()
            checked = _with_outliers(left_out)
        errors = score_errors(checked, weights, expected_NH, images)
        result["errors"] += [asdict(error) for error in errors]
        _write(path, result)
    _write(path, result | {"complete": True})
    print(ladder_page(result))
    return path


def _with_outliers(left_out: tuple[str, ...]) -> dict[str, Scorer]:
    """The rows whose errors matter with weights that are hard to round."""
    rows = makers(True, PLAIN_BATCH, PLAIN_BATCH)
    wanted = {name: rows[name] for name in rows if name == "eager fp16" or name.startswith("fused")}
    made, _, _ = build_all(wanted, left_out)
    return {name: scorer for name, (scorer, _) in made.items()}


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")  # the process may be killed during a write
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)
    path.with_suffix(".md").write_text(ladder_page(result))


class Meter:
    """Power and clock of the first GPU."""

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
    """Milliseconds of each batch over `seconds`, and the meter's readings."""
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
    """Run all scorers in turns; yields the rows after each turn. A turn's first batches don't count."""
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
    """Score errors of each scorer on the same images."""
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
    """The rate of products of 8192^3 sustained in this run: the chip's practical limit."""
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


def synthetic_images(count: int, seed: int) -> Tensor:
    """Pixels [N, S, S, 3] with the spectrum of natural images, of varying contrast and brightness."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    size = SPEC.image_size
    pixels = torch.zeros(count, 3, size, size, device=DEVICE)
    for octave in (2, 4, 8, 16, 32, 64, 128):
        gray = torch.randn(count, 1, octave, octave, generator=generator, device=DEVICE)
        colour = torch.randn(count, 3, octave, octave, generator=generator, device=DEVICE)
        strength = 2 * torch.rand(count, 1, 1, 1, generator=generator, device=DEVICE) * octave**-0.5
        pixels += strength * F.interpolate(gray + 0.5 * colour, size=(size, size), mode="bicubic")
    contrast, brightness = torch.rand(2, count, 1, 1, 1, generator=generator, device=DEVICE)
    pixels = pixels * (20 + 60 * contrast) + 60 + 130 * brightness
    images_NHWC: Tensor = pixels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return images_NHWC


@cache
def tower_state(outliers: bool) -> dict[str, Tensor]:
    """Random weights, made once; with `outliers` uneven norms, two huge channels, two rare hard neurons."""
    state = random_tower_state(SPEC)
    if not outliers:
        return state
    generator = torch.Generator().manual_seed(5)
    for name in [name for name in state if ".ln_" in name]:
        state[name] += 0.3 * (torch.rand(SPEC.width, generator=generator) - 0.5)
        if name.endswith("weight"):
            state[name][torch.randint(0, SPEC.width, (6,), generator=generator)] *= 8
    state["blocks.1.fc2.bias"][7], state["blocks.1.fc2.bias"][512] = 40.0, -25.0
    for block in (2, 12):
        state[f"blocks.{block}.fc1.weight"][11] *= 8
        state[f"blocks.{block}.fc1.bias"][11] = -9.0
        state[f"blocks.{block}.fc2.weight"][:, 11] *= 60
    return state


def head_bank() -> HeadBank:
    """A random linear head of the published one's size."""
    head = Head("random", head_from_state(random_head_state(SPEC.embed_dim)))
    return HeadBank([head], SPEC.embed_dim).to(DEVICE)


def tower_of(state: dict[str, Tensor]) -> VisionTower:
    """A float32 tower on the GPU with its own copy of the weights."""
    return VisionTower.from_state(SPEC, {k: v.clone() for k, v in state.items()}).to(DEVICE)


def reference(state: dict[str, Tensor]) -> Scorer:
    """The eager tower in float32."""
    tower, heads = tower_of(state), head_bank()
    return lambda images: torch.cat([heads(tower(normalize(part, SPEC))) for part in torch.split(images, 64)])


def prepare(images: Tensor) -> Tensor:
    """Normalised float16 pixels [N, 3, S, S] for eager models; not in their time."""
    return normalize(images, SPEC, torch.float16)


def eager(state: dict[str, Tensor]) -> Scorer:
    """The eager tower in float16, on prepared pixels."""
    tower, heads = tower_of(state).half(), head_bank()
    return lambda pixels: heads(tower(pixels))


def open_clip_eager(precision: str) -> Scorer:
    """open_clip's model with random weights of its own, on prepared pixels.

    `fp16` keeps LayerNorms in float32; `pure_fp16` doesn't and is faster.
    """
    import open_clip

    model = open_clip.create_model(SPEC.name, precision=precision, device=DEVICE).visual.eval()
    heads = head_bank()
    return lambda pixels: heads(model(pixels))


def backend_scorer(backend: Backend) -> Scorer:
    """A backend without its embeddings."""
    return lambda images: backend(images)[0]


def by_name(state: dict[str, Tensor], name: str, precision: str, batch: int) -> Scorer:
    """A backend as a run builds it."""
    return backend_scorer(build_backend(name, tower_of(state), head_bank(), DEVICE, precision, batch))


def norm_passes(state: dict[str, Tensor], batch: int) -> Scorer:
    """The fused fp16 backend with LayerNorm passes in place of deferred norms."""
    tower = tower_of(state)
    encoder = fused.FusedEncoder(tower, fused.NormPasses(folding.fold_all_but_the_last(tower), torch.float16))
    work = Workspace.make(SPEC, batch, DEVICE, torch.float16)
    return backend_scorer(fused.FusedBackend(encoder, head_bank(), work, "fp16"))


def tuned(state: dict[str, Tensor], batch: int) -> Scorer:
    """torch.compile with tuned products."""
    return backend_scorer(
        plain.build_compiled(
            tower_of(state), head_bank(), DEVICE, "fp16", batch, "max-autotune-no-cudagraphs"
        )
    )


@cache
def calibration(outliers: bool) -> Calibration:
    """Scales from images that no other row sees; without a gate."""
    anything = GateLimits(mean_error=math.inf, p99_error=math.inf, flips=math.inf)
    images = synthetic_images(512, seed=3), synthetic_images(64, seed=5)
    tower = tower_of(tower_state(outliers))
    return calibrate.calibrate(tower, head_bank(), DEVICE, *images, {}, anything, {})


def float8(outliers: bool, batch: int, float16_products: tuple[str, ...] = ()) -> Scorer:
    """The float8 backend with some of its products in float16."""
    scales = calibration(outliers)
    scales = replace(scales, choice=replace(scales.choice, float16_products=float16_products))
    tower = tower_of(tower_state(outliers))
    return backend_scorer(fused_fp8.build(tower, head_bank(), DEVICE, batch, scales))


def makers(outliers: bool, batch: int, plain_batch: int) -> dict[str, tuple[Callable[[], Scorer], int]]:
    """All rows by name: their builder and batch size. The first one is the base of the ratios."""
    state = tower_state(outliers)
    rows: dict[str, tuple[Callable[[], Scorer], int]] = {
        "open_clip eager pure fp16": (lambda: open_clip_eager("pure_fp16"), plain_batch),
        "open_clip eager fp16": (lambda: open_clip_eager("fp16"), plain_batch),
        "eager fp16": (lambda: eager(state), plain_batch),
    }
    for name in ("torchscript", "compile", "triton"):
        rows[f"{name} fp16"] = (partial(by_name, state, name, "fp16", plain_batch), plain_batch)
    rows["compile fp16, tuned"] = (partial(tuned, state, plain_batch), plain_batch)
    rows["fused fp16, LayerNorm passes"] = (partial(norm_passes, state, batch), batch)
    for precision in ("fp16", "bf16"):
        rows[f"fused {precision}"] = (partial(by_name, state, "fused", precision, batch), batch)
    for products in reversed(calibrate.LADDER):
        kept = f", {' and '.join(products)} fp16" if products else ""
        rows[f"fused fp8{kept}"] = (partial(float8, outliers, batch, products), batch)
    return rows


def build_all(
    rows: dict[str, tuple[Callable[[], Scorer], int]], without: Sequence[str]
) -> tuple[dict[str, tuple[Scorer, int]], dict[str, float], dict[str, str]]:
    """The scorers, the seconds to build each and run it once, and the reasons of those that failed."""
    made: dict[str, tuple[Scorer, int]] = {}
    seconds: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for name, (make, batch) in rows.items():
        if any(part in name for part in without):
            skipped[name] = "left out"
            continue
        start = time.monotonic()
        try:
            scorer = make()
            pixels = synthetic_images(batch, seed=6)
            with torch.inference_mode():
                scorer(prepare(pixels) if is_prepared(name) else pixels)
            torch.cuda.synchronize()
        except Exception as error:  # libraries of backends raise errors of many types
            skipped[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        else:
            made[name], seconds[name] = (scorer, batch), round(time.monotonic() - start, 1)
        print(f"{name}: {seconds.get(name, skipped.get(name))}", flush=True)
    return made, seconds, skipped


def is_prepared(name: str) -> bool:
    """Whether a row takes pixels that `prepare` has normalised."""
    return "eager" in name
