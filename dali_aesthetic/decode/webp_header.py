"""WebP headers: RIFF size and the VP8, VP8L or VP8X chunk (RFC 9649)."""

from __future__ import annotations

from dali_aesthetic.decode.exif import UNCLEAR, UPRIGHT
from dali_aesthetic.types import Buffer, ImageHeader, Route, Status

_ALPHA, _EXIF, _XMP, _ANIMATION = 0x10, 0x08, 0x04, 0x02


def read(image: Buffer) -> ImageHeader:
    """The header of a WebP (bytes that begin with RIFF....WEBP), its route, or what is wrong with it."""
    start = bytes(image[:30])
    if len(start) < 25:
        return _bad(Status.TRUNCATED, "WebP: ends within its header")
    size = _size(start)
    if 8 + int.from_bytes(start[4:8], "little") > len(image):
        width, height, _ = size or (0, 0, False)
        return _bad(Status.TRUNCATED, "WebP: shorter than its RIFF size", width, height)
    if size is None:
        return _bad(Status.UNDECODABLE, f"WebP: its first chunk is {start[12:16]!r}, or damaged")
    width, height, plain = size
    if not (width and height):
        return _bad(Status.UNDECODABLE, f"WebP: a size of {width}x{height}")
    tagged = start[12:16] == b"VP8X" and start[20] & (_EXIF | _XMP)
    return ImageHeader(
        format="webp",
        width=width,
        height=height,
        route=Route.DALI if plain else Route.PILLOW,
        orientation=UNCLEAR if tagged else UPRIGHT,
    )


def _size(start: bytes) -> tuple[int, int, bool] | None:
    """Width, height, and whether DALI decodes it as the reference does (no alpha, no animation)."""
    chunk = start[12:16]
    if chunk == b"VP8 " and len(start) >= 30 and start[23:26] == b"\x9d\x01\x2a":
        width = int.from_bytes(start[26:28], "little") & 0x3FFF
        return width, int.from_bytes(start[28:30], "little") & 0x3FFF, True
    if chunk == b"VP8L" and start[20] == 0x2F:
        bits = int.from_bytes(start[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, not bits >> 28 & 1
    if chunk == b"VP8X" and len(start) >= 30:
        width = int.from_bytes(start[24:27], "little") + 1
        height = int.from_bytes(start[27:30], "little") + 1
        return width, height, not start[20] & (_ALPHA | _ANIMATION)
    return None


def _bad(status: Status, message: str, width: int = 0, height: int = 0) -> ImageHeader:
    return ImageHeader(
        format="webp", width=width, height=height, route=Route.NOBODY, status=status, message=message
    )
