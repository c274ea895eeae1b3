"""What the hardware gives at most, measured in the same run: matrix products, memory, JPEG decoding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.raw_decode import EncodedImages, dali_work
from benchmarks.record import Measured, Record
from benchmarks.roofline import (
    block_gemms,
    full_flops,
    limit_at_own_shapes,
    limits,
    needed_bytes,
    needed_flops,
)
from benchmarks.timing import for_seconds, measure_rate, measure_speed
from dali_aesthetic.score.spec import TowerSpec

Launch = Callable[[], object]


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
    """GEMM rates (8192^3, the encoder's own shapes), copy bandwidths, decode rates, and what they allow."""
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
    """TFLOP/s of products [m, k] by [k, n] of `shape` m, n, k; a row of the record. Raises as `gemm`."""
    m, n, k = shape
    work = for_seconds(gemm(m, n, k, precision, device), seconds, device, 1)
    title = f"GEMM {precision} {name} {m}x{n}x{k}"
    measured = measure_speed(title, work, repeats, device, unit="TFLOP/s", per_item=2e-12 * m * n * k)
    record.add(measured)
    return float(measured.as_row()["median"])


def gemm(m: int, n: int, k: int, precision: str, device: torch.device) -> Launch:
    """Launches one product of random matrices, [m, k] by [k, n]. Raises RuntimeError if it can't run."""
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
    """GB/s of a copy within the device's memory (read and written bytes together); a row of the record."""
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
    """Images/s that the square GEMM's rate allows the encoder; its other limits beside it."""
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
