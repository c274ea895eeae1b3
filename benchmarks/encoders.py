"""Every way to run the encoder on one device, against the limit of the chip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.bench import encoder_row, make_bench
from benchmarks.measure import for_seconds, measure_rate
from benchmarks.open_clip_model import open_clip_tower
from benchmarks.results import Measured, Record, read_record
from benchmarks.settings import Settings
from dali_aesthetic.score.backends.fits import resolve_backend
from dali_aesthetic.score.clip import Normalize
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.spec import spec_of
from dali_aesthetic.score.weights import load_head

BACKENDS = ("eager", "torchscript", "triton", "fused")
SLOW_TO_COMPILE = ("compile",)
"""Minutes on a CPU, half a minute and two on a GPU; measured last, as a run may be cut off."""
PRECISIONS = ("fp32", "fp16", "bf16", "fp8")
BASELINE = "open_clip eager"
HEAD = "head alone"


def measure(settings: Settings) -> None:
    """The encoder in every backend and precision, and open_clip's."""
    record = settings.record("encoders")
    measure_encoders(record, settings)
    record.note("complete", True)


def measure_encoders(record: Record, settings: Settings) -> None:
    """open_clip's tower, then every available backend in every precision, and the head alone."""
    precision = "fp16" if settings.on_gpu else "fp32"
    if not record.has(f"{BASELINE} {precision}"):
        limit = encoder_limit(record.path, settings.encoder_name, precision)
        record.add(_open_clip_row(settings, precision, limit))
    _measure_backends(record, settings, BACKENDS)
    if not record.has(HEAD):
        record.add(_head_row(settings))
    if settings.on_gpu or not settings.quick:
        _measure_backends(record, settings, SLOW_TO_COMPILE)


def _measure_backends(record: Record, settings: Settings, backends: Sequence[str]) -> None:
    for name in backends:
        for wanted in PRECISIONS:
            if (wanted == "fp32") == settings.on_gpu or (wanted == "bf16" and name != "fused"):
                continue
            if record.has(f"{name} {wanted}"):
                continue
            try:
                resolve_backend(name, wanted, settings.chip)
            except ValueError:
                continue  # this backend, or this precision of it, can't run here
            _measure_backend(record, settings, name, wanted)


def _head_row(settings: Settings) -> Measured:
    spec = spec_of(settings.encoder_name)
    loaded, _ = load_head(settings.head, settings.encoder_name, spec.embed_dim, None)
    bench, head = make_bench(settings), HeadBank([loaded], spec.embed_dim).to(settings.chip)
    embeddings_ND = torch.randn(bench.worker.scorer.batch_size, spec.embed_dim, device=settings.chip)
    work = for_seconds(lambda: head(embeddings_ND), bench.seconds / 4, settings.chip, len(embeddings_ND))
    row = bench.measure(HEAD, work)
    bench.worker.decoder.close()
    return row


def encoder_limit(encoders: Path, encoder: str, precision: str) -> float | None:
    """Images/s at the GEMM rate of the ceilings that stand beside a result of encoders; None without them.

    They must be of the same hardware and day: chips of one name, and days, differ by some percent.
    """
    path = encoders.with_name(encoders.name.replace("encoders", "ceilings", 1))
    if not path.exists() or (ceilings := read_record(path))["settings"]["encoder"] != encoder:
        return None
    name = f"encoder limit {'fp16' if precision == 'bf16' else precision}"
    return next((row["median"] for row in ceilings["rows"] if row["name"] == name), None)


def _measure_backend(record: Record, settings: Settings, name: str, precision: str) -> None:
    title = f"{name} {precision}"
    try:
        bench = make_bench(settings, backend=name, precision=precision)
        limit = encoder_limit(record.path, settings.encoder_name, precision)
        row = encoder_row(bench, limit, title)
        record.add(row)
        bench.worker.decoder.close()
    except Exception as error:  # libraries of backends raise errors of many types
        record.skip(title, f"{type(error).__name__}: {error}".splitlines()[0][:300])


def _open_clip_row(settings: Settings, precision: str, limit: float | None) -> Measured:
    """open_clip's image tower as it comes, in the same precision: the baseline."""
    device = settings.chip
    dtype = torch.float16 if precision == "fp16" else torch.float32
    spec = spec_of(settings.encoder_name)
    tower = open_clip_tower(spec, settings.weights).to(device, dtype).eval()
    normalize = Normalize(spec, dtype).to(device)
    batch = settings.batch_size or (512 if settings.on_gpu else 32)
    shape = (batch, spec.image_size, spec.image_size, 3)
    images_NHWC = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    @torch.inference_mode()
    def launch() -> Tensor:
        embeddings: Tensor = tower(normalize(images_NHWC))
        return embeddings

    work = for_seconds(launch, settings.num_seconds, device, batch)
    detail = {"precision": precision, "batch_size": batch}
    return measure_rate(
        f"{BASELINE} {precision}",
        work,
        settings.num_repeats,
        device,
        limit=limit,
        detail=lambda: detail,
    )
