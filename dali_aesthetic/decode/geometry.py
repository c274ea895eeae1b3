"""The reference's geometry: open_clip's resize of the short side and centre crop, as one region.

open_clip (`image_transform(S, is_train=False)`, torchvision on PIL) resizes to S on the short side and
`int(S * long / short)` on the long one, then crops at `round((n - S) / 2)`, rounding half to even. That
is the same as resampling one region of the source to S x S, which is what DALI is asked to do.
"""

from __future__ import annotations

from dataclasses import dataclass


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
