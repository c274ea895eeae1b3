"""The rows of the encoder's ladder: every way to run ViT-L/14, how it is built, and why one can't be."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.synthetic import DEVICE, SPEC, head_bank, synthetic_images, tower_state
from dali_aesthetic.score.backends import calibrate, folding, fused, fused_fp8, plain
from dali_aesthetic.score.backends.backend import Backend, build_backend
from dali_aesthetic.score.backends.calibration import Calibration
from dali_aesthetic.score.backends.workspace import Workspace
from dali_aesthetic.score.clip import VisionTower, normalize
from dali_aesthetic.score.gate import GateLimits

Scorer = Callable[[Tensor], Tensor]
"""Pixels to scores [N, H]: uint8 [N, S, S, 3], or for eager models what `prepare` makes of them."""

state_of = cache(tower_state)
"""The weights, made once; `tower_of` copies them."""


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


def backend_scorer(backend: Backend) -> Scorer:
    """A backend without its embeddings."""
    return lambda images: backend(images)[0]


def by_name(state: dict[str, Tensor], name: str, precision: str, batch: int) -> Scorer:
    """A backend as a run gets it."""
    return backend_scorer(build_backend(name, tower_of(state), head_bank(), DEVICE, precision, batch))


def norm_passes(state: dict[str, Tensor], batch: int) -> Scorer:
    """The fused fp16 backend with LayerNorm passes in place of deferred norms."""
    tower = tower_of(state)
    encoder = fused.FusedEncoder(tower, fused.NormPasses(folding.fold_all_but_the_last(tower), torch.float16))
    work = Workspace.make(SPEC, batch, DEVICE, torch.float16)
    return backend_scorer(fused.FusedBackend(encoder, head_bank(), work, "fp16"))


def tuned(state: dict[str, Tensor], batch: int) -> Scorer:
    """torch.compile with its products tuned."""
    return backend_scorer(
        plain.build_compiled(
            tower_of(state), head_bank(), DEVICE, "fp16", batch, "max-autotune-no-cudagraphs"
        )
    )


@cache
def calibration(outliers: bool) -> Calibration:
    """Scales from images of their own; no gate."""
    anything = GateLimits(mean_error=math.inf, p99_error=math.inf, flips=math.inf)
    images = synthetic_images(512, seed=3), synthetic_images(64, seed=5)
    tower = tower_of(state_of(outliers))
    return calibrate.calibrate(tower, head_bank(), DEVICE, *images, {}, anything, {})


def float8(outliers: bool, batch: int, float16_products: tuple[str, ...] = ()) -> Scorer:
    """The float8 backend, some of its products left in float16."""
    scales = calibration(outliers)
    scales = replace(scales, choice=replace(scales.choice, float16_products=float16_products))
    tower = tower_of(state_of(outliers))
    return backend_scorer(fused_fp8.build(tower, head_bank(), DEVICE, batch, scales))


def makers(outliers: bool, batch: int, plain_batch: int) -> dict[str, tuple[Callable[[], Scorer], int]]:
    """Every row by name: how it is built, and its batch size. The first is what ratios are against."""
    state = state_of(outliers)
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
    """The scorers, the seconds each took to build and run once, and why some could not be."""
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
        except Exception as error:  # a backend may fail in as many ways as its libraries have
            skipped[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        else:
            made[name], seconds[name] = (scorer, batch), round(time.monotonic() - start, 1)
        print(f"{name}: {seconds.get(name, skipped.get(name))}", flush=True)
    return made, seconds, skipped


def is_prepared(name: str) -> bool:
    """Whether a row is given pixels that are normalised already, outside of its time."""
    return "eager" in name
