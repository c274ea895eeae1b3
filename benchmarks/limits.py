"""The hardware's limits, measured in one run: matrix products, memory bandwidth, JPEG decoding by DALI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.measure import Work, finish, for_seconds, measure_rate, measure_speed
from benchmarks.results import Measured, Record
from benchmarks.roofline import (
    block_gemms,
    full_flops,
    limit_at_own_shapes,
    limits,
    needed_bytes,
    needed_flops,
)
from benchmarks.settings import Settings
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.decode.geometry import resize_steps
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.decode.pipelines import Feed, build_pipeline
from dali_aesthetic.overlap import cpu_count
from dali_aesthetic.score.spec import TowerSpec, spec_of
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.types import Route

Launch = Callable[[], object]
_PREFETCH = 2


def measure(settings: Settings) -> None:
    """The hardware's limits: matrix products, memory bandwidth, JPEG decoding."""
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


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """Encoded images as views of their bytes, and their (width, height)."""

    data: list[npt.NDArray[np.uint8]]
    sizes: list[tuple[int, int]]


def measure_ceilings(
    record: Record,
    spec: TowerSpec,
    images: EncodedImages,
    device: torch.device,
    *,
    batch_size: int,
    repeats: int,
    seconds: float,
) -> None:
    """Rates of GEMMs (8192^3, encoder's shapes), copies and decoding, and the encoder's limits by them."""
    tflops = {}
    for precision in ("fp16", "fp8") if device.type == "cuda" else ("fp32",):
        try:
            tflops[precision] = _gemms(record, spec, device, precision, batch_size, repeats, seconds)
        except (RuntimeError, AttributeError) as error:
            record.skip(f"GEMM {precision}", str(error).splitlines()[0])
    bandwidth = copy_bandwidth(record, device, repeats, seconds)
    if device.type == "cuda":
        _upload(record, device, repeats, seconds)
    for resize in (False, True):
        work = dali_work(images, device, batch_size, resize=resize)
        name = "DALI decode + resize" if resize else "DALI decode only"
        record.add(measure_rate(name, work, repeats, device))
    for precision, rates in tflops.items():
        record.add(_allowed(spec, precision, rates, bandwidth))


def _gemms(
    record: Record,
    spec: TowerSpec,
    device: torch.device,
    precision: str,
    batch_size: int,
    repeats: int,
    seconds: float,
) -> dict[str, float]:
    """TFLOP/s by shape; `square` is 8192^3, on a CPU 2048^3."""
    side = 8192 if device.type == "cuda" else 2048
    shapes = {"square": (side, side, side)}
    shapes |= {shape.name: (batch_size * shape.m, shape.n, shape.k) for shape in block_gemms(spec)}
    return {
        name: gemm_rate(record, name, shape, precision, device, repeats, seconds)
        for name, shape in shapes.items()
    }


def gemm_rate(
    record: Record,
    name: str,
    shape: tuple[int, int, int],
    precision: str,
    device: torch.device,
    repeats: int,
    seconds: float,
) -> float:
    """Add a row of TFLOP/s for products [m, k] by [k, n], `shape` being m, n, k. Raises as `gemm`."""
    m, n, k = shape
    work = for_seconds(gemm(m, n, k, precision, device), seconds, device, 1)
    title = f"GEMM {precision} {name} {m}x{n}x{k}"
    measured = measure_speed(title, work, repeats, device, unit="TFLOP/s", per_item=2e-12 * m * n * k)
    record.add(measured)
    return float(measured.as_row()["median"])


def gemm(m: int, n: int, k: int, precision: str, device: torch.device) -> Launch:
    """A launch of a product of random matrices, [m, k] by [k, n]. Raises RuntimeError if it can't run."""
    if precision == "fp8":
        return _fp8_gemm(m, n, k, device)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
    out = torch.empty(m, n, dtype=dtype, device=device)
    return lambda: torch.mm(a, b.t(), out=out)


def _fp8_gemm(m: int, n: int, k: int, device: torch.device) -> Launch:
    a = torch.randn(m, k, device=device).to(torch.float8_e4m3fn)
    b = torch.randn(n, k, device=device).to(torch.float8_e4m3fn)
    one = torch.ones((), device=device)

    def launch() -> Tensor:
        return torch._scaled_mm(
            a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.float16, use_fast_accum=True
        )

    launch()
    return launch


def copy_bandwidth(record: Record, device: torch.device, repeats: int, seconds: float) -> float:
    """Add a row of GB/s for a copy within the device's memory, read and written bytes together."""
    size = (1 << 30) if device.type == "cuda" else (1 << 27)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    work = for_seconds(lambda: target.copy_(source), seconds, device, 1)
    measured = measure_speed(
        "copy within device memory", work, repeats, device, unit="GB/s", per_item=2e-9 * size
    )
    record.add(measured)
    return float(measured.as_row()["median"])


def _upload(record: Record, device: torch.device, repeats: int, seconds: float) -> None:
    size = 1 << 28
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    work = for_seconds(lambda: target.copy_(host, non_blocking=True), seconds, device, 1)
    record.add(measure_speed("copy host to device", work, repeats, device, unit="GB/s", per_item=1e-9 * size))


def _allowed(spec: TowerSpec, precision: str, rates: dict[str, float], bandwidth: float) -> Measured:
    """The encoder's images/s at the square GEMM's rate; other limits in the detail."""
    bound = limits(spec, rates["square"], bandwidth, precision)
    detail = {
        "encoder": spec.name,
        "gflop_per_image": round(full_flops(spec) / 1e9, 2),
        "gflop_per_image_needed": round(needed_flops(spec) / 1e9, 2),
        "megabytes_per_image": round(needed_bytes(spec, precision) / 1e6, 1),
        "flop_per_byte": round(needed_flops(spec) / needed_bytes(spec, precision), 1),
        "limit_by_memory": round(bound["memory"], 1),
        "limit_at_own_shapes": round(limit_at_own_shapes(spec, rates), 1),
    }
    return Measured(name=f"encoder limit {precision}", values=[bound["compute"]], detail=detail)


def load_images(pattern: str, limits: Limits) -> EncodedImages:
    """All images of the shards that the package would give to DALI."""
    found = EncodedImages([], [])
    for batch in fill_batches(read_shards(plan_shards(pattern)), 1024, limits):
        for sample, header in zip(batch.samples, batch.headers, strict=True):
            if header.route is Route.DALI and sample.image is not None:
                found.data.append(np.frombuffer(sample.image, np.uint8))
                found.sizes.append((header.width, header.height))
    return found


def dali_work(
    images: EncodedImages, device: torch.device, batch_size: int, *, resize: bool, image_size: int = 224
) -> Work:
    """A pass over the images in batches: by the package's own pipeline, without `resize` decoding alone."""
    batch_size = min(batch_size, len(images.data), 512)
    device_id = (device.index or 0) if device.type == "cuda" else None
    feeds: list[Feed] = [
        _feed(images, start, batch_size, image_size if resize else 0)
        for start in range(0, len(images.data) - batch_size + 1, batch_size)
    ]
    pending: Iterator[Feed] = iter(())

    def source() -> Any:
        feed = next(pending)
        return feed if resize else feed[0]

    pipeline = _pipeline(source, batch_size, device_id, resize)

    def work() -> int:
        nonlocal pending
        pending = iter(feeds)
        pipeline.reset()
        done = 0
        for _ in feeds:
            pipeline.run()
            done += batch_size
        finish(device)
        return done

    return work


def _feed(images: EncodedImages, start: int, count: int, image_size: int) -> Feed:
    """A batch, and the arguments of its resizes unless `image_size` is 0."""
    data, sizes = images.data[start : start + count], images.sizes[start : start + count]
    return (data, *resize_steps(sizes, image_size)) if image_size else (data,)


def _pipeline(source: Any, batch_size: int, device_id: int | None, resize: bool) -> Any:
    if resize:
        return build_pipeline(
            source,
            max_batch=batch_size,
            num_threads=cpu_count(),
            device_id=device_id,
            prefetch=_PREFETCH,
        )
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=cpu_count(),
        device_id=device_id,
        prefetch_queue_depth=_PREFETCH,
        exec_dynamic=True,
    )
    with pipeline:
        data = fn.external_source(
            source=source, batch=True, no_copy=True, dtype=types.DALIDataType.UINT8, ndim=1
        )
        options: dict[str, Any] = {"device": "cpu"}
        if device_id is not None:
            options = {"device": "mixed", "hw_decoder_load": 1.0}
        images: Any = fn.decoders.image(
            data,
            output_type=types.DALIImageType.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
            **options,
        )
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline
