"""The header check of JPEGs as one would write it down first, marker by marker: slow, and the reference."""

from __future__ import annotations

from dataclasses import dataclass, field

from dali_aesthetic.decode.jpeg import UPRIGHT, orientation
from dali_aesthetic.types import Buffer, ImageHeader, Route, Status

_WINDOWS = (4096, 65536)
"""Bytes looked at first: most files hold their headers in the first, those with EXIF in the second."""
_SOS, _EOI, _APP1, _APP14 = 0xDA, 0xD9, 0xE1, 0xEE
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DALI_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended sequential and progressive Huffman. The rest (lossless, arithmetic) goes to Pillow."""


@dataclass(slots=True)
class _Segments:
    """What the walk met before the first scan: the frame header's marker and fields, APP1 contents."""

    frame: tuple[int, bytes] | None = None
    app1: list[bytes] = field(default_factory=list)
    adobe_transform: int | None = None


def read(image: Buffer) -> ImageHeader:
    """The header of a JPEG (bytes that begin with FFD8), its route, or what is wrong with it."""
    for window in (*_WINDOWS, len(image)):
        # A copy, since bytes are indexed three times as fast as a memoryview.
        header = _walk(image, bytes(image[:window]))
        if header is not None:
            return header
        if window >= len(image):
            break
    return _bad(Status.TRUNCATED, "JPEG: the headers end before the first scan")


def _walk(image: Buffer, data: bytes) -> ImageHeader | None:
    """None where `data` ends before the first scan."""
    position, found = 2, _Segments()
    end = len(data)
    while position + 4 <= end:
        if data[position] != 0xFF:
            return _bad(Status.UNDECODABLE, f"JPEG: no marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in _STANDALONE:
            position += 2
            continue
        if marker == _EOI:
            return _bad(Status.UNDECODABLE, "JPEG: ends before its first scan")
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if length < 2:
            return _bad(Status.UNDECODABLE, f"JPEG: a segment of length {length} at byte {position}")
        if marker in _FRAMES:
            found.frame = (marker, data[position + 4 : position + min(19, 2 + length)])
        elif marker == _APP1:
            found.app1.append(data[position + 4 : position + 2 + length])
        elif marker == _APP14:
            app14 = data[position + 4 : position + 2 + length]
            transform = app14[11] if len(app14) > 11 else 0
            found.adobe_transform = transform if app14.startswith(b"Adobe") else None
        elif marker == _SOS:
            return _judge(image, found, position)
        position += 2 + length
    return None


def _judge(image: Buffer, found: _Segments, scan: int) -> ImageHeader:
    if found.frame is None or len(found.frame[1]) < 6:
        return _bad(Status.UNDECODABLE, "JPEG: a scan without a frame header")
    marker, fields = found.frame
    precision, components = fields[0], fields[5]
    height, width = int.from_bytes(fields[1:3], "big"), int.from_bytes(fields[3:5], "big")
    if not (width and height):
        return _bad(Status.UNDECODABLE, f"JPEG: a size of {width}x{height}")
    if precision != 8:
        return _bad(Status.UNSUPPORTED, f"JPEG: {precision} bits a sample are not supported", width, height)
    if not _has_end(image, scan):
        return _bad(Status.TRUNCATED, "JPEG: no end marker after the scan", width, height)
    # Four components are inks: the reference resizes these and converts last, DALI the other way round.
    plain = marker in _DALI_FRAMES and components in (1, 3)
    # Three components that are RGB as they stand, by Adobe's marker or by their names.
    identifiers = bytes(fields[at] for at in (6, 9, 12) if at < len(fields))
    if components == 3 and (found.adobe_transform == 0 or identifiers == b"RGB"):
        plain = False
    return ImageHeader(
        format="jpeg",
        width=width,
        height=height,
        route=Route.DALI if plain else Route.PILLOW,
        orientation=orientation(found.app1) if found.app1 else UPRIGHT,
    )


def _has_end(image: Buffer, scan: int) -> bool:
    # Nearly always the last two bytes; trailing zeros or a page of HTML behind it are harmless.
    tail = bytes(image[max(scan, len(image) - 256) :])
    return b"\xff\xd9" in tail or b"\xff\xd9" in bytes(image[scan:])


def _bad(status: Status, message: str, width: int = 0, height: int = 0) -> ImageHeader:
    return ImageHeader(
        format="jpeg", width=width, height=height, route=Route.NOBODY, status=status, message=message
    )
