"""PNG headers: IHDR and IEND (W3C PNG, sections 5 and 11)."""

from __future__ import annotations

from dali_aesthetic.decode.exif import UNCLEAR
from dali_aesthetic.types import Buffer, ImageHeader, Route, Status

_GRAY, _RGB = 0, 2


def read(image: Buffer) -> ImageHeader:
    """The header of a PNG (bytes that begin with its signature), its route, or what is wrong with it."""
    start = bytes(image[:33])
    if len(start) < 33:
        return _bad(Status.TRUNCATED, "PNG: ends within its header")
    if start[12:16] != b"IHDR":
        return _bad(Status.UNDECODABLE, "PNG: does not begin with IHDR")
    width, height = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
    if not (width and height):
        return _bad(Status.UNDECODABLE, f"PNG: a size of {width}x{height}")
    if b"IEND" not in bytes(image[-4096:]) and b"IEND" not in bytes(image):
        return _bad(Status.TRUNCATED, "PNG: no IEND chunk", width, height)
    # The reference resizes in the file's own mode and converts last: palettes (nearest neighbour),
    # alpha, 1 bit and 16 bits come out differently from DALI, so Pillow decodes those.
    bit_depth, colour_type = start[24], start[25]
    plain = colour_type in (_GRAY, _RGB) and bit_depth == 8
    return ImageHeader(
        format="png",
        width=width,
        height=height,
        route=Route.DALI if plain else Route.PILLOW,
        orientation=UNCLEAR,  # eXIf and XMP may stand anywhere in the file
    )


def _bad(status: Status, message: str, width: int = 0, height: int = 0) -> ImageHeader:
    return ImageHeader(
        format="png", width=width, height=height, route=Route.NOBODY, status=status, message=message
    )
