"""Every kernel of the fused encoder by itself, against its bound: matrix products or memory traffic.

Both bounds are measured in the same run, so that the chip's temperature doesn't change the shares.

Shape legend: N images, P patches of an image, L = P + 1 tokens, W width, F MLP width, K values of a patch, H
heads, R = N * L or N * P rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.limits import copy_bandwidth, gemm_rate
from benchmarks.measure import for_seconds, measure_rate
from benchmarks.results import Measured, Record
from benchmarks.roofline import VIT_L_14
from benchmarks.settings import Settings
from dali_aesthetic.score.backends import folding
from dali_aesthetic.score.backends.fits import why_not_fused
from dali_aesthetic.score.clip import LAYER_NORM_EPS
from dali_aesthetic.score.spec import TowerSpec

FLOAT8 = torch.float8_e4m3fn
# Kernels are imported where they are used: not every torch has Triton.


@dataclass(frozen=True, slots=True)
class Kernel:
    """A launch for a batch, and its operations and bytes for one image, each byte moved once."""

    name: str
    launch: Callable[[], object]
    flops: float
    bytes: float
    precision: str = "fp16"

    def seconds(self, teraflops: dict[str, float], gigabytes: float) -> tuple[float, str]:
        """The least time for an image, and which of the two bounds it."""
        bounds = {
            "products": self.flops / (teraflops[self.precision] * 1e12),
            "memory": self.bytes / (gigabytes * 1e9),
        }
        what = max(bounds, key=lambda name: bounds[name])
        return bounds[what], what


def measure(settings: Settings) -> None:
    """Every kernel of the fused encoder by itself, against its bound. Needs a Hopper GPU and QuACK."""
    if reason := why_not_fused(VIT_L_14, settings.chip, "fp8"):
        print(f"  the fused kernels can't run here, {reason}: nothing measured")
        return
    record = settings.record("kernels")
    measure_kernels(
        record,
        VIT_L_14,
        settings.chip,
        batch_size=settings.batch_size or 1019,
        repeats=settings.num_repeats,
        seconds=settings.num_seconds / 4,
    )
    record.note("complete", True)


def measure_kernels(
    record: Record, spec: TowerSpec, device: torch.device, *, batch_size: int, repeats: int, seconds: float
) -> None:
    """Add a row for each kernel: images/s of a launch, share of the bound, microseconds an image."""
    side = 8192 if device.type == "cuda" else 256
    teraflops = {
        name: gemm_rate(
            record,
            "square",
            (side, side, side),
            name if device.type == "cuda" else "fp32",
            device,
            repeats,
            seconds,
        )
        for name in ("fp16", "fp8")
    }
    gigabytes = copy_bandwidth(record, device, repeats, seconds)
    for kernel in kernels_of(spec, batch_size, device):
        bound, what = kernel.seconds(teraflops, gigabytes)
        work = for_seconds(kernel.launch, seconds, device, batch_size)
        measured = measure_rate(kernel.name, work, repeats, device)
        microseconds = round(1e6 / measured.as_row()["median"], 4)
        detail = {"microseconds": microseconds, "bound_microseconds": round(bound * 1e6, 4), "bound_by": what}
        record.add(
            Measured(
                name=kernel.name, values=measured.values, limit=1 / bound, detail=detail, gpu=measured.gpu
            )
        )


def kernels_of(spec: TowerSpec, batch_size: int, device: torch.device) -> Iterator[Kernel]:
    """All kernels; buffers are allocated when the iterator reaches their kernel."""
    shapes = _Shapes(spec, batch_size, device)
    yield from _embedding(shapes)
    yield from _norms(shapes)
    yield from _attention(shapes)
    for fp8 in (False, True):
        yield from _products(shapes, fp8)


@dataclass(frozen=True, slots=True)
class _Shapes:
    spec: TowerSpec
    images: int
    device: torch.device

    @property
    def patches(self) -> int:
        return self.spec.tokens - 1

    def noise(self, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(0)
        return torch.randn(*shape, generator=generator, device=self.device, dtype=torch.float16).to(dtype)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.empty(*shape, device=self.device, dtype=dtype)

    def vector(self, size: int) -> Tensor:
        return torch.ones(size, device=self.device)


def _embedding(at: _Shapes) -> Iterator[Kernel]:
    from dali_aesthetic.score.backends.kernels import embed

    spec, images, patches, width = at.spec, at.images, at.patches, at.spec.width
    size, columns = spec.image_size, folding.padded_patch(spec.patch_size)
    pixels = torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8, device=at.device)
    rows = at.empty(images * patches, columns)
    yield Kernel(
        "patchify",
        lambda: embed.patchify(pixels, rows, spec.patch_size),
        0,
        3 * size * size + 2 * patches * columns,
    )
    embedded = at.noise(images * patches, width)
    tokens = at.empty(images * patches, width), at.empty(images, width)
    table, gain, bias = at.noise(spec.tokens, width).float(), at.vector(width), at.vector(width)
    yield Kernel(
        "assemble and ln_pre",
        lambda: embed.assemble(embedded, table, gain, bias, tokens, None, LAYER_NORM_EPS),
        0,
        2 * width * (patches + spec.tokens),
    )


def _norms(at: _Shapes) -> Iterator[Kernel]:
    from dali_aesthetic.score.backends.kernels import layernorm

    rows, width = at.images * at.spec.tokens, at.spec.width
    each = at.spec.tokens * width
    h = at.noise(rows, width)
    for title, dtype in (("fp16", torch.float16), ("fp8", FLOAT8)):
        out = at.empty(rows, width, dtype=dtype)
        yield Kernel(
            f"LayerNorm to {title}",
            lambda out=out: layernorm.normalize_rows(h, out, LAYER_NORM_EPS),  # type: ignore[misc]
            0,
            each * (2 + out.element_size()),
        )
    scale, shift = at.vector(rows), at.vector(rows)
    yield Kernel(
        "LayerNorm's moments", lambda: layernorm.row_moments(h, scale, shift, LAYER_NORM_EPS), 0, 2 * each
    )
    tiles = max(1, width // 128)
    sums = at.noise(rows, tiles).float(), at.noise(rows, tiles).float().abs()
    yield Kernel(
        "moments from sums",
        lambda: layernorm.fold_moments(*sums, scale, shift, width, LAYER_NORM_EPS),
        0,
        8 * at.spec.tokens * (tiles + 1),
    )


def _attention(at: _Shapes) -> Iterator[Kernel]:
    from dali_aesthetic.score.backends.kernels import attention, class_block

    spec, images, patches, width = at.spec, at.images, at.patches, at.spec.width
    qkv, qkv_class = at.noise(images * patches, 3 * width), at.noise(images, 3 * width)
    qkv[:, :width] *= folding.softmax_scale(width // spec.heads)
    out_class = at.empty(images, width)
    flops = 4.0 * spec.tokens**2 * width
    for title, dtype in (("fp16", torch.float16), ("fp8", FLOAT8)):
        out = at.empty(images * patches, width, dtype=dtype)
        yield Kernel(
            f"attention to {title}",
            lambda out=out: attention.attend(qkv, qkv_class, out, out_class, spec.heads),  # type: ignore[misc]
            flops,
            width * (spec.tokens * 6 + patches * out.element_size() + 2),
        )
    asks = at.noise(images, spec.heads, width) * 0.1
    tokens, mixed = (at.noise(images * patches, width), at.noise(images, width)), torch.empty_like(asks)
    yield Kernel(
        "last block's attention",
        lambda: class_block.class_attention(asks, *tokens, mixed),
        4.0 * spec.heads * spec.tokens * width,
        2 * width * (spec.tokens + 2 * spec.heads),
    )


def _products(at: _Shapes, fp8: bool) -> Iterator[Kernel]:
    """The four products of a block as the fused encoder runs them, with their epilogues."""
    dtype, precision = (FLOAT8, "fp8") if fp8 else (torch.float16, "fp16")
    width, mlp = at.spec.width, at.spec.mlp_width
    per_image = at.patches if fp8 else at.spec.tokens
    rows = at.images * per_image
    for name, out_channels, channels in (
        ("qkv", 3 * width, width),
        ("proj", width, width),
        ("fc1", mlp, width),
        ("fc2", width, mlp),
    ):
        x = at.noise(rows, channels, dtype=dtype)
        out = at.empty(rows, out_channels, dtype=dtype if name == "fc1" else torch.float16)
        residual = out_channels == width
        weights = out_channels * channels * dtype.itemsize / at.images
        moved = per_image * (channels * dtype.itemsize + out_channels * (out.element_size() + 2 * residual))
        yield Kernel(
            f"{name} {precision}, {_EPILOGUES[name, fp8].replace('_', ' ')}",
            _launch(at, name, fp8, x, out),
            2.0 * per_image * out_channels * channels,
            moved + weights,
            precision,
        )


_EPILOGUES = {
    ("qkv", False): "normed_linear",
    ("proj", False): "linear_residual_moments",
    ("fc1", False): "normed_linear_quick_gelu",
    ("fc2", False): "linear_residual_moments",
    ("qkv", True): "scaled_linear",
    ("proj", True): "scaled_linear_residual",
    ("fc1", True): "scaled_linear_quick_gelu",
    ("fc2", True): "scaled_linear_residual",
}


def _launch(at: _Shapes, name: str, fp8: bool, x: Tensor, out: Tensor) -> Callable[[], object]:
    from dali_aesthetic.score.backends.kernels import gemm

    epilogue = _EPILOGUES[name, fp8]
    rows, out_channels = out.shape
    weight = (at.noise(out_channels, x.shape[1]) / x.shape[1] ** 0.5).to(x.dtype)
    operands: dict[str, Tensor | float] = {"b": at.vector(out_channels) * 0}
    if "normed" in epilogue:
        operands["ws"] = at.vector(out_channels)
    if fp8:
        operands["s"] = at.vector(out_channels)
    if fp8 and name == "fc1":
        operands["q"] = 1.0
    product = gemm.Gemm(epilogue, weight, None, **operands)
    given: dict[str, Tensor] = {}
    if "normed" in epilogue:
        given = {"rs": at.vector(rows)[None], "rm": 0 * at.vector(rows)[None]}
    if "moments" in epilogue:
        tiles = -(-out_channels // product.tile.n)
        given = {"total": at.empty(rows, tiles).float(), "squares": at.empty(rows, tiles).float()}
    residual = at.noise(rows, out_channels) if "residual" in epilogue else None
    return lambda: product(x, out, residual, **given)
