"""The reference's geometry: open_clip's resize of the short side and centre crop, as one region.

open_clip (`image_transform(S, is_train=False)`, torchvision on PIL) resizes to S on the short side and
`int(S * long / short)` on the long one, then crops at `round((n - S) / 2)`, rounding half to even. That
is the same as resampling one region of the source to S x S, which is what DALI is asked to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Geometry:
    """Resized size and crop corner in resized pixels; the crop is `size` square."""

    size: int
    resized_width: int
    resized_height: int
    left: int
    top: int

    @classmethod
    def of(cls, width: int, height: int, size: int) -> Geometry:
        """The geometry for an image of `width` x `height` pixels and an encoder input of `size`."""
        short = min(width, height)
        resized_width = size if width == short else int(size * width / short)
        resized_height = size if height == short else int(size * height / short)
        left, top = round((resized_width - size) / 2.0), round((resized_height - size) / 2.0)
        return cls(size, resized_width, resized_height, left, top)

    def source_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The crop in source pixels: left, top, right, bottom."""
        x_scale, y_scale = width / self.resized_width, height / self.resized_height
        return (
            self.left * x_scale,
            self.top * y_scale,
            (self.left + self.size) * x_scale,
            (self.top + self.size) * y_scale,
        )


def source_boxes(sizes: Sequence[tuple[int, int]], output: int) -> npt.NDArray[np.float32]:
    """`Geometry.source_box` of many images at once: left, top, right, bottom as float32 [4, n].

    Equal to it to the bit: the same operations in float64, which holds every product of two sizes exactly.
    """
    size_N2 = np.array(sizes, np.int64).reshape(-1, 2)
    short_N1 = size_N2.min(axis=1, keepdims=True)
    # Where a side is the short one the quotient is the output itself; else it is cut off as int() does.
    resized_N2 = np.trunc(output * size_N2 / short_N1)
    corner_N2 = np.rint((resized_N2 - output) / 2.0)
    scale_N2 = size_N2 / resized_N2
    boxes_N4 = np.concatenate([corner_N2 * scale_N2, (corner_N2 + output) * scale_N2], axis=1)
    return boxes_N4.T.astype(np.float32)


def resize_steps(sizes: Sequence[tuple[int, int]], output: int) -> list[npt.NDArray[np.float32]]:
    """Images of (width, height) `sizes` to squares of `output`, as arguments of two resizes.

    For each three float32 [n, 2] arrays: output size, region's first corner, region's last corner, as
    (y, x). The first is horizontal and keeps every row, the second vertical, as PIL does it.
    """
    left, top, right, bottom = source_boxes(sizes, output)
    square = np.full((len(sizes), 2), output, np.float32)
    heights = np.array([height for _, height in sizes], np.float32)
    none = np.zeros(len(sizes), np.float32)
    horizontal = [_corners(heights, square[:, 1]), _corners(none, left), _corners(heights, right)]
    return [*horizontal, square, _corners(top, none), _corners(bottom, square[:, 1])]


def _corners(y: npt.NDArray[np.float32], x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.stack([y, x], axis=1)
