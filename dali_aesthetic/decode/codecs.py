"""PNG, WebP and AVIF through the extra `codecs` (imagecodecs): Pillow's pixels in less of its time.

It runs off the interpreter lock, which Pillow holds while it decodes an AVIF. PNG libraries unpack by zlib,
which takes most of a photo's time; libdeflate is twice as fast, but wants the data whole. So they are
unpacked here, and libspng, which undoes the filters, gets the rows packed without compression, which costs
0.4 ms a megapixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dali_aesthetic.decode.headers import image_data, in_order, picture_alone
from dali_aesthetic.types import Buffer, ImageHeader

imagecodecs: Any
try:
    import imagecodecs
except ImportError:
    imagecodecs = None

_SIGNATURE_AND_IHDR = 33
_IEND = b"\0\0\0\0IEND\xaeB`\x82"
_CHANNELS = {0: 1, 2: 3, 6: 4}
"""Of each colour type."""
_STORED_BLOCK = 65535
"""Bytes of a deflate block without compression; each has 5 more."""


def formats() -> frozenset[str]:
    """The formats that `decode` takes: none without the extra, or where a library of it is missing."""
    if imagecodecs is None:
        return frozenset()
    needed = {
        "png": (imagecodecs.DEFLATE, imagecodecs.SPNG),
        "webp": (imagecodecs.WEBP,),
    }
    return frozenset(name for name, parts in needed.items() if all(part.available for part in parts))


def decode(image: Buffer, header: ImageHeader) -> npt.NDArray[np.uint8]:
    """The image as uint8 RGB [height, width, 3], equal to Pillow's.

    `header` is that of an image whose route is DALI. Raises (many types) for damaged data; what it takes,
    Pillow takes as well.
    """
    if header.format == "png":
        pixels = _png(image, header.width, header.height)
    else:
        pixels = imagecodecs.webp_decode(picture_alone(image), hasalpha=False)
    if pixels.shape[:2] != (header.height, header.width):
        raise ValueError(f"{pixels.shape} pixels of {header.width}x{header.height}")
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def decode_rgba(image: Buffer, width: int, height: int) -> npt.NDArray[np.uint8] | None:
    """A PNG of 8 bits RGB and alpha as uint8 [height, width, 4], equal to Pillow's. None: that decides."""
    rgba = image[:4] == b"\x89PNG" and image[24:26] == b"\x08\x06"
    if not (rgba and "png" in formats() and in_order(image)):
        return None
    try:
        return _png(image, width, height)
    except Exception:
        return None


def decode_avif(image: Buffer, width: int, height: int, channels: int) -> npt.NDArray[np.uint8] | None:
    """A still AVIF of 8 bits that Pillow has opened, as uint8 [height, width, channels], of one channel
    [height, width], equal to Pillow's. None: that decides."""
    if imagecodecs is None or not imagecodecs.AVIF.available:
        return None
    try:
        pixels = imagecodecs.avif_decode(image, numthreads=1)  # one of many images: threads are no gain
    except Exception:
        return None
    if pixels.ndim == 2 and channels == 3:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return pixels if pixels.dtype == np.uint8 and pixels.shape == shape else None


def _png(image: Buffer, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Of 8 bits, without a palette. The chunks beside the data are left out: `tRNS` would make RGB RGBA."""
    # A filter byte a row, and up to twice as many interlaced. Pillow decides about data of more bytes.
    most = height * (width * _CHANNELS[image[25]] + 2) + 8
    rows = imagecodecs.deflate_decode(image_data(image), out=np.empty(most, np.uint8))
    blocks = 5 * (len(rows) // _STORED_BLOCK + 1)
    png = np.empty(_SIGNATURE_AND_IHDR + 8 + len(rows) + blocks + 64, np.uint8)
    start = _SIGNATURE_AND_IHDR + 8
    end = start + len(imagecodecs.deflate_encode(rows, 0, out=png[start:-20]))
    del rows
    view = memoryview(png)
    view[:_SIGNATURE_AND_IHDR] = image[:_SIGNATURE_AND_IHDR]
    view[start - 8 : start] = (end - start).to_bytes(4, "big") + b"IDAT"
    view[end : end + 4] = imagecodecs.deflate_crc32(png[start - 4 : end]).to_bytes(4, "big")
    view[end + 4 : end + 16] = _IEND
    pixels: npt.NDArray[np.uint8] = imagecodecs.spng_decode(png[: end + 16])
    return pixels
