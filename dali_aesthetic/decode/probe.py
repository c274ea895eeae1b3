"""The header check: format, size and obvious damage of an image from its bytes, without decoding.

A few microseconds an image. It decides who decodes (`Route`) and stops nearly all bad input before DALI
sees it: one raising image costs its whole DALI batch a second decode, and in mixed mode a cut JPEG decodes
without a word, so the end marker is looked for here. Formats are told by magic bytes, never by extension.
"""

from __future__ import annotations

from dataclasses import dataclass

from dali_aesthetic.decode import jpeg_header, png_header, webp_header
from dali_aesthetic.types import Buffer, ImageHeader, Route, Status

GIANT_PIXELS = 32_000_000
"""Above this an image goes to Pillow, one at a time, so that it can't blow up DALI's batch buffers."""
BOMB_PIXELS = 16_000_000
"""Below this a high ratio of pixels to bytes is harmless (a flat image), so it isn't looked at."""

_PILLOW_FORMATS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF8", "gif"),
    (0, b"BM", "bmp"),
    (0, b"II*\x00", "tiff"),
    (0, b"MM\x00*", "tiff"),
    (0, b"\x00\x00\x00\x0cjP  ", "jpeg2000"),
    (0, b"\xff\x4f\xff\x51", "jpeg2000"),
    (0, b"\x00\x00\x01\x00", "ico"),
    (0, b"P4", "pnm"),
    (0, b"P5", "pnm"),
    (0, b"P6", "pnm"),
    (4, b"ftypavif", "avif"),
    (4, b"ftypavis", "avif"),
)
_KNOWN_UNSUPPORTED: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyphei", "heic"),
    (4, b"ftyphev", "heic"),
    (4, b"ftypmif1", "heic"),
    (0, b"\xff\x0a", "jpegxl"),
    (0, b"\x00\x00\x00\x0cJXL ", "jpegxl"),
    (0, b"8BPS", "psd"),
    (0, b"%PDF", "pdf"),
    (4, b"ftyp", "video"),
    (0, b"\x1aE\xdf\xa3", "video"),
)
_TGA_FOOTER = b"TRUEVISION-XFILE.\x00"


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on what is decoded at all; see `config.DecodeConfig` for their meaning."""

    max_pixels: int = 200_000_000
    max_pixels_per_byte: int = 1000


def probe(image: Buffer, limits: Limits) -> ImageHeader:
    """What the header says. Never raises: whatever the bytes are, the answer is a route or a status."""
    data = bytes(image[:32])
    if not data:
        return _bad("", Status.EMPTY, "the image has no bytes")
    if data.startswith(b"\xff\xd8"):
        header = jpeg_header.read(image)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        header = png_header.read(image)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = webp_header.read(image)
    else:
        header = _other(image, data)
    return _within(limits, header, len(image)) if header.status is Status.OK else header


def _other(image: Buffer, data: bytes) -> ImageHeader:
    for offset, magic, name in _PILLOW_FORMATS:
        if data.startswith(magic, offset):
            return ImageHeader(format=name, width=0, height=0, route=Route.PILLOW)
    for offset, magic, name in _KNOWN_UNSUPPORTED:
        if data.startswith(magic, offset):
            return _bad(name, Status.UNSUPPORTED, f"{name} is not supported: convert it to JPEG, PNG or WebP")
    if bytes(image[-18:]) == _TGA_FOOTER:
        return ImageHeader(format="tga", width=0, height=0, route=Route.PILLOW)
    return _bad("", Status.UNDECODABLE, f"no image format begins with {data[:12]!r}")


def _within(limits: Limits, header: ImageHeader, num_bytes: int) -> ImageHeader:
    pixels = header.width * header.height
    if pixels > limits.max_pixels:
        return _too_large(header, f"{pixels:,} pixels, the limit is {limits.max_pixels:,}")
    if pixels > BOMB_PIXELS and pixels > limits.max_pixels_per_byte * num_bytes:
        return _too_large(
            header,
            f"{pixels:,} pixels in {num_bytes:,} bytes, the limit is {limits.max_pixels_per_byte:,} a byte",
        )
    if pixels > GIANT_PIXELS and header.route is Route.DALI:
        return ImageHeader(format=header.format, width=header.width, height=header.height, route=Route.PILLOW)
    return header


def _too_large(header: ImageHeader, message: str) -> ImageHeader:
    return ImageHeader(
        format=header.format,
        width=header.width,
        height=header.height,
        route=Route.NOBODY,
        status=Status.TOO_LARGE,
        message=f"{header.width}x{header.height}: {message}",
    )


def _bad(name: str, status: Status, message: str) -> ImageHeader:
    return ImageHeader(format=name, width=0, height=0, route=Route.NOBODY, status=status, message=message)
