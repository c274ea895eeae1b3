"""The header check of JPEGs as one would write it down first, marker by marker: slow, and the reference."""

from __future__ import annotations

from dataclasses import dataclass, field

from dali_aesthetic.decode.jpeg import UPRIGHT, orientation
from dali_aesthetic.decode.jpeg_scans import Scans
from dali_aesthetic.types import Buffer, ImageHeader, Route, ScanHeader, Status

_WINDOWS = (4096, 65536)
"""Bytes looked at first: most files hold their headers in the first, those with EXIF in the second."""
_SOS, _EOI, _DHT, _DRI, _APP1, _APP14 = 0xDA, 0xD9, 0xC4, 0xDD, 0xE1, 0xEE
_RESTARTS = range(0xD0, 0xD8)
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DALI_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended sequential and progressive Huffman. The rest (lossless, arithmetic) goes to Pillow."""


@dataclass(slots=True)
class _Segments:
    """What the walk met before the first scan: the frame header's marker and fields, APP1 contents."""

    frame: tuple[int, bytes] | None = None
    tables: bytes = b""
    app1: list[bytes] = field(default_factory=list)
    adobe_transform: int | None = None
    interval: int = 0
    junk: int = 0
    markers: int = 0


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
        found.markers += 1
        if found.markers > 4096:
            return _bad(Status.TOO_LARGE, "JPEG: more than 4096 markers before the first scan")
        marker = data[position + 1]
        if data[position] != 0xFF or marker in (0x00, 0xFF):
            fill = data[position] == 0xFF and marker == 0xFF
            at = position
            while at + 1 < end and not (data[at] == 0xFF and data[at + 1] not in (0x00, 0xFF)):
                at += 1
            if at + 1 >= end:
                return None
            found.junk += 0 if fill else at - position
            if found.junk > 65536:
                return _bad(Status.UNDECODABLE, f"JPEG: no marker at byte {position}")
            position = at
            continue
        if marker in _STANDALONE:
            position += 2
            continue
        if marker == _EOI:
            return _bad(Status.UNDECODABLE, "JPEG: ends before its first scan")
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if length < 2:
            found.junk += 1
            position += 4
            continue
        if marker in _FRAMES:
            found.frame = (marker, data[position + 4 : position + 2 + length])
        elif marker == _DHT:
            found.tables += data[position + 4 : position + 2 + length]
        elif marker == _DRI:
            found.interval = int.from_bytes(data[position + 4 : position + 6], "big")
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
    parts = [(fields[at], fields[at + 1]) for at in range(6, 6 + 3 * components, 3) if at + 1 < len(fields)]
    progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
    scans = _scans(bytes(image), scan, (width, height), dict(parts), progressive, found.interval)
    if scans is Scans.NO_END:
        return _bad(Status.TRUNCATED, "JPEG: no end marker after the scan", width, height)
    if scans is Scans.TOO_MANY:
        return _bad(Status.TOO_LARGE, "JPEG: more than 100 scans", width, height)
    # Four components are inks: the reference resizes these and converts last, DALI the other way round.
    plain = marker in _DALI_FRAMES and components in (1, 3)
    # Three components that are RGB as they stand, by Adobe's marker or by their names.
    identifiers = bytes(fields[at] for at in (6, 9, 12) if at < len(fields))
    if components == 3 and (found.adobe_transform == 0 or identifiers == b"RGB"):
        plain = False
    if (
        found.junk
        or scans is Scans.SUSPECT
        or any(not (1 <= f >> 4 <= 4 and 1 <= f & 15 <= 4) for _, f in parts)
    ):
        plain = False
    start = scan + 2 + int.from_bytes(image[scan + 2 : scan + 4], "big")
    content = bytes(image[scan + 4 : start])
    at_once = marker in (0xC0, 0xC1) and content[1:-3:2] == fields[6 : 6 + 3 * components : 3]
    return ImageHeader(
        format="jpeg",
        width=width,
        height=height,
        route=Route.DALI if plain else Route.PILLOW,
        orientation=orientation(found.app1) if found.app1 else UPRIGHT,
        layout=b"" if progressive else bytes(factors for _, factors in parts),
        scan=ScanHeader(start, found.interval, content, found.tables) if at_once else None,
    )


def _scans(
    data: bytes, scan: int, size: tuple[int, int], parts: dict[int, int], progressive: bool, interval: int
) -> Scans:
    found = _to_the_end(data, scan, size, parts, progressive, interval)
    if found is Scans.SUSPECT and data.count(b"\xff\xda", scan) > 100:
        return Scans.TOO_MANY
    if found is Scans.SUSPECT and data.find(b"\xff\xd9", scan) < 0:
        return Scans.NO_END
    return found


def _to_the_end(
    data: bytes, position: int, size: tuple[int, int], parts: dict[int, int], progressive: bool, interval: int
) -> Scans:
    """From a scan's marker to the end marker, through every byte FF of the entropy-coded data."""
    coded: set[tuple[int, int]] = set()
    """Components and coefficients of which all bits have come."""
    for _ in range(100):
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        header = data[position + 4 : position + 2 + length]
        count = header[0] if header else 0
        if len(header) != length - 2 or not count or len(header) < 4 + 2 * count:
            return Scans.SUSPECT
        names = [header[1 + 2 * i] for i in range(count)]
        first, last, low = header[1 + 2 * count], header[2 + 2 * count], header[3 + 2 * count] & 15
        if not progressive:
            first, last, low = 0, 63, 0
        if not set(names) <= set(parts) or first > last or last > 63:
            return Scans.SUSPECT
        for name in names:
            for coefficient in range(first, last + 1):
                coded.discard((name, coefficient))
                if low == 0:
                    coded.add((name, coefficient))
        position += 2 + length
        restarts = []
        position = data.find(b"\xff", position)
        while 0 <= position < len(data) - 1:
            if data[position + 1] != 0:
                if interval == 0 or data[position + 1] not in _RESTARTS:
                    break
                restarts.append(data[position + 1] - 0xD0)
            position = data.find(b"\xff", position + 2)
        else:
            return Scans.NO_END
        if interval:
            expected = -(-_units(size, parts, names) // interval) - 1
            if restarts != [i % 8 for i in range(expected)]:
                return Scans.SUSPECT
        all_at_once = not progressive and set(names) == set(parts) and count == len(parts)
        while data[position + 1] != _SOS:
            marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
            if marker == _EOI:
                return Scans.WHOLE if len(coded) == 64 * len(parts) else Scans.SUSPECT
            if marker not in (0xC4, 0xDB, _DRI, 0xFE, *range(0xE0, 0xF0)) or length < 2:
                return Scans.SUSPECT
            if marker == _DRI:
                interval = int.from_bytes(data[position + 4 : position + 6], "big")
            position += 2 + length
            if position + 4 > len(data):
                return Scans.NO_END
            if data[position] != 0xFF:
                return Scans.SUSPECT
        if all_at_once:
            return Scans.SUSPECT
    return Scans.TOO_MANY


def _units(size: tuple[int, int], parts: dict[int, int], names: list[int]) -> int:
    """The MCUs of a scan: blocks of 8 x 8 samples where it holds one component, else of all components."""
    width, height = size
    across, down = max(f >> 4 for f in parts.values()) or 1, max(f & 15 for f in parts.values()) or 1
    if len(names) > 1:
        return -(-width // (8 * across)) * -(-height // (8 * down))
    factors = parts[names[0]]
    columns, rows = -(-width * (factors >> 4) // across), -(-height * (factors & 15) // down)
    return -(-columns // 8) * -(-rows // 8)


def _bad(status: Status, message: str, width: int = 0, height: int = 0) -> ImageHeader:
    return ImageHeader(
        format="jpeg", width=width, height=height, route=Route.NOBODY, status=status, message=message
    )
