"""Matrix products on Hopper by QuACK, with fused epilogues and pinned tile shapes.

Shape legend: M rows, N output channels, K input channels."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor

from dali_aesthetic.score.backends.cache import use_cache_folder

_FAST_ACCUMULATION = (("fp8_slow_accum", False),)
"""An attribute of QuACK's kernel object, set before it is traced: float8 partial sums are not promoted.

QuACK has no argument for it. A test on the GPU holds that the attribute still exists.
"""


@dataclass(frozen=True, slots=True)
class Tile:
    """The tiling of a product: tile of a thread block, cluster size, and warp-group schedule.

    With `pingpong` two warp groups alternate, so that the epilogue of one overlaps the products of the other.
    """

    m: int
    n: int
    cluster_m: int
    cluster_n: int
    pingpong: bool = False
    swizzle: int = 8


_DEFAULT = Tile(128, 256, 2, 1)
_TILES: Mapping[tuple[int, int, int], Tile] = {
    (3072, 1024, 2): Tile(192, 128, 1, 2, pingpong=True),
    (1024, 1024, 2): Tile(192, 128, 1, 2, pingpong=True, swizzle=16),
    (4096, 1024, 2): Tile(192, 128, 1, 2, pingpong=True, swizzle=16),
    (1024, 4096, 2): Tile(192, 128, 1, 2, pingpong=True),
    (3072, 1024, 1): Tile(192, 128, 1, 2, pingpong=True, swizzle=16),
    (1024, 1024, 1): Tile(192, 128, 1, 2, pingpong=True),
    (4096, 1024, 1): Tile(128, 128, 2, 1, pingpong=True),
    (1024, 4096, 1): Tile(192, 128, 1, 2, pingpong=True),
}
"""The fastest tiles within the whole ViT-L/14 on an H100, by output and input channels and bytes of an input.

Products measured alone rank differently, because the chip is at its power limit.
"""


def _tile_of(channels_out: int, channels_in: int, element_size: int) -> Tile:
    """The pinned tile of a product; a default for shapes that were not measured."""
    return _TILES.get((channels_out, channels_in, element_size), _DEFAULT)


def import_epilogues() -> ModuleType:
    """The module of the epilogues. Its first import brings QuACK, Dynamo and Inductor: seconds."""
    use_cache_folder()
    return importlib.import_module(f"{__package__}.epilogues")


class Gemm:
    """`out = epilogue(rows @ weight^T, ...)` with a fixed weight and fixed operands of its epilogue.

    `weight` is contiguous [N, K]: float16 or bfloat16 for rows of the same dtype, float8_e4m3fn for
    float8_e4m3fn rows. Vectors are float32 [N]; scalars are constants of the launch.
    """

    def __init__(
        self, epilogue: str, weight_NK: Tensor, tile: Tile | None = None, **operands: Tensor | float
    ) -> None:
        self._epilogue = getattr(import_epilogues(), epilogue)
        self._weight_KN = weight_NK.mT
        self._operands: dict[str, Any] = {
            name: value[None] if isinstance(value, Tensor) else value for name, value in operands.items()
        }
        self.channels_out, channels_in = weight_NK.shape
        chosen = self.tile = tile or _tile_of(self.channels_out, channels_in, weight_NK.element_size())
        self._launch = {
            "tile_M": chosen.m,
            "tile_N": chosen.n,
            "cluster_M": chosen.cluster_m,
            "cluster_N": chosen.cluster_n,
            "pingpong": chosen.pingpong,
            "max_swizzle_size": chosen.swizzle,
            "post_init_attrs": _FAST_ACCUMULATION if weight_NK.element_size() == 1 else (),
            "b_kn": True,
        }

    def __call__(
        self, rows_MK: Tensor, out_MN: Tensor, residual_MN: Tensor | None = None, **operands: Tensor
    ) -> None:
        """Writes `out`, which may be the residual itself: each element is read before it is written.

        `operands` are those that change with each call: vectors per row [1, M], and outputs of the epilogue.
        """
        self._epilogue.gemm(
            rows_MK,
            self._weight_KN,
            out_MN,
            residual_MN,
            epi_args={**self._operands, **operands},
            **self._launch,
        )
