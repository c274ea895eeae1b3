"""The reference decoder and transform, image by image, through Pillow.

It serves what DALI can't or what the reference treats differently (palettes, alpha, 16 bits, GIF, AVIF,
TIFF, ...), the samples of a batch that DALI refused, and the tests as the truth to compare with.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from dali_aesthetic.decode.geometry import Geometry
from dali_aesthetic.types import Buffer

DRAFT_PIXELS = 32_000_000
"""JPEGs above this are decoded at a reduced scale (never below twice the encoder's input)."""
_MAX_RESIZED_ASPECT = 16
"""Beyond this aspect ratio only the crop's region is resampled: the long side is never allocated."""


class TooManyPixels(ValueError):
    """The decoded header shows more pixels than the limit."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """`pixels_SSC` is uint8 RGB [S, S, 3]; width and height are the source's."""

    pixels_SSC: npt.NDArray[np.uint8]
    width: int
    height: int


def decode_reference(data: Buffer, image_size: int, max_pixels: int) -> Decoded:
    """The image as open_clip's own transform gives it, before normalisation.

    As the reference does: the first frame, in the file's own mode, bicubic resize, centre crop, then to
    RGB; EXIF orientation and colour profiles are ignored. Raises `TooManyPixels` above `max_pixels`, and
    whatever Pillow raises (many types) for data that it can't decode.
    """
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise TooManyPixels(f"{width}x{height}: {width * height:,} pixels, the limit is {max_pixels:,}")
        if width * height > DRAFT_PIXELS:
            image.draft(None, (2 * image_size, 2 * image_size))
        return Decoded(square_pixels(image, image_size), width, height)


def square_pixels(image: Image.Image, image_size: int) -> npt.NDArray[np.uint8]:
    """The reference's transform of an opened image: uint8 RGB [image_size, image_size, 3]."""
    return np.asarray(_square(image, image_size).convert("RGB"))


def allow_large_images() -> None:
    """Leave the pixel limit to the header check: Pillow's own bomb guard has another limit.

    Truncated files must raise; a program that embeds this package may have switched that off.
    """
    Image.MAX_IMAGE_PIXELS = None
    ImageFile.LOAD_TRUNCATED_IMAGES = False


def _square(image: Image.Image, size: int) -> Image.Image:
    image.load()
    width, height = image.size
    geometry = Geometry.of(width, height, size)
    if max(width, height) > _MAX_RESIZED_ASPECT * min(width, height):
        box = geometry.source_box(width, height)
        return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    resized = image.resize((geometry.resized_width, geometry.resized_height), Image.Resampling.BICUBIC)
    left, top = geometry.left, geometry.top
    return resized.crop((left, top, left + size, top + size))
