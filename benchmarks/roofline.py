"""Operations and bytes of a tower for one image, counted from its shape.

A multiply-add counts as two operations. `needed` leaves out what no score depends on: only the class token
leaves the last block, so that the other tokens' queries, projections and MLP rows there are not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dali_aesthetic.score.spec import TowerSpec

VIT_L_14 = TowerSpec(
    name="ViT-L-14-quickgelu", image_size=224, patch_size=14, width=1024, layers=24, heads=16, mlp_width=4096,
    embed_dim=768, quick_gelu=True,
)  # fmt: skip
"""The tower of the encoder ladder, which the published heads were trained for."""
ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}


@dataclass(frozen=True, slots=True)
class GemmShape:
    """`m` x `k` times `k` x `n`; `m` is the tokens of one image."""

    name: str
    m: int
    n: int
    k: int

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k


def block_gemms(spec: TowerSpec) -> tuple[GemmShape, ...]:
    """The four matrix products of a block, for one image."""
    tokens, width, mlp = spec.tokens, spec.width, spec.mlp_width
    return (
        GemmShape("qkv", tokens, 3 * width, width),
        GemmShape("proj", tokens, width, width),
        GemmShape("fc1", tokens, mlp, width),
        GemmShape("fc2", tokens, width, mlp),
    )


def full_flops(spec: TowerSpec) -> float:
    """Operations of the whole tower for one image, as in open_clip."""
    return _embed_flops(spec) + spec.layers * _block_flops(spec)


def needed_flops(spec: TowerSpec) -> float:
    """Operations that the class token's embedding depends on."""
    tokens, width, mlp = spec.tokens, spec.width, spec.mlp_width
    keys_values = 2.0 * tokens * width * 2 * width
    class_token = 2.0 * (2 * width * width + 2 * width * mlp) + 4.0 * tokens * width
    return _embed_flops(spec) + (spec.layers - 1) * _block_flops(spec) + keys_values + class_token


def needed_bytes(spec: TowerSpec, precision: str) -> float:
    """Bytes through device memory for one image where everything but GEMMs and attention is fused.

    Each block: qkv, attention, proj with the residual, fc1 with the activation, fc2 with the residual. The
    weights are left out: a batch reads them once. The residual stream of fp8 is fp16.
    """
    element, residual = ELEMENT_BYTES[precision], max(2, ELEMENT_BYTES[precision])
    tokens, width, mlp = spec.tokens, spec.width, spec.mlp_width
    activations = element * (9 * width + 2 * mlp) + residual * 5 * width
    return 3.0 * spec.image_size**2 + spec.layers * tokens * activations


def limits(spec: TowerSpec, tflops: float, gb_per_s: float, precision: str) -> dict[str, float]:
    """Images/s if nothing but products, or nothing but memory traffic, took time."""
    return {
        "compute": tflops * 1e12 / needed_flops(spec),
        "memory": gb_per_s * 1e9 / needed_bytes(spec, precision),
    }


def limit_at_own_shapes(spec: TowerSpec, tflops: Mapping[str, float]) -> float:
    """Images/s if nothing but the blocks' products took time, each shape at its own speed."""
    seconds = sum(shape.flops / (tflops[shape.name] * 1e12) for shape in block_gemms(spec))
    kv_share = 2 / 3 * block_gemms(spec)[0].flops / (tflops["qkv"] * 1e12)
    return 1 / ((spec.layers - 1) * seconds + kv_share)


def _block_flops(spec: TowerSpec) -> float:
    attention = 4.0 * spec.tokens**2 * spec.width
    return attention + sum(shape.flops for shape in block_gemms(spec))


def _embed_flops(spec: TowerSpec) -> float:
    patches = 2.0 * (spec.tokens - 1) * 3 * spec.patch_size**2 * spec.width
    return patches + 2.0 * spec.width * spec.embed_dim
