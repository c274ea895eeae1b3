"""JPEG headers: a walk over the markers up to the first scan (ITU-T T.81, annex B), and the EXIF orientation.
`jpeg_scans` goes on from there.

Every image of a run passes here, so the common case costs one unpack and one table lookup a segment.
`tests/decode/jpeg_walk.py` is the straightforward walk; a test holds both to the same answers."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

from dali_aesthetic.decode import jpeg_scans
from dali_aesthetic.decode.jpeg_scans import MOST_SCANS, Frame, Scans
from dali_aesthetic.types import Buffer, ImageHeader, Route, ScanHeader, Status

_WINDOWS = (4096, 65536)
"""Bytes searched first: most files hold their headers in the first window, those with EXIF in the second."""
_MARKERS = range(4096)
"""Markers walked at most before the first scan; real files have a few dozen."""
_MOST_JUNK = 1 << 16
"""Bytes between segments that are passed over, as Pillow and libjpeg do, one by one."""
_SOS, _EOI, _DHT, _DRI, _APP1, _APP14, _FILL = 0xDA, 0xD9, 0xC4, 0xDD, 0xE1, 0xEE, 0xFF
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DALI_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended sequential and progressive Huffman. The rest (lossless, arithmetic) goes to Pillow."""
_ONE_SCAN_FRAMES = frozenset({0xC0, 0xC1})
_PROGRESSIVE_FRAMES = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_TOLD = _FRAMES | _STANDALONE | {0x00, _SOS, _EOI, _DHT, _DRI, _APP1, _APP14, _FILL}
_SKIPPED = bytes(word >= 0xFF00 and word & 0xFF not in _TOLD for word in range(1 << 16))
"""1 for every marker (two bytes) of a segment that is skipped: quantization tables, comments, ..."""
_segment = struct.Struct(">HH").unpack_from
_next_marker = re.compile(rb"\xff[^\x00\xff]").search
_frame_fields = struct.Struct(">BHHB").unpack_from
_size = struct.Struct(">HH").unpack_from
_NO_ADOBE = -1
UPRIGHT, UNCLEAR = 1, 0
"""EXIF orientations: 1 to 8, or unclear where parsers disagree."""
_EXIF = b"Exif\0\0"
_ORIENTATION_TAG, _SHORT = 0x0112, 3
_DALI, _PILLOW, _OK = Route.DALI, Route.PILLOW, Status.OK
_WHOLE, _NO_END, _TOO_MANY = Scans.WHOLE, Scans.NO_END, Scans.TOO_MANY
_FACTORS = bytes(across << 4 | down for across in range(1, 5) for down in range(1, 5))
"""The sampling factors that a frame header may state (T.81, B.2.2)."""
ONE_COMPONENT = b"\x11"
"""The layout of a JPEG of one component: its sampling factors have no meaning (T.81, A.2.2)."""
COMMON_LAYOUT = b"\x22\x11\x11"
"""4:2:0."""
ENGINE_LAYOUTS = frozenset((ONE_COMPONENT, COMMON_LAYOUT, b"\x11\x11\x11", b"\x21\x11\x11", b"\x12\x11\x11"))
"""Grey, 4:2:0, 4:4:4, 4:2:2 and 4:4:0: what the GPU's JPEG engine decodes."""


class _Segments(NamedTuple):
    """The segments before the first scan: offsets of the frame header (-1: none), of the scan, …"""

    frame: int
    scan: int
    tables: bytes
    app1: list[bytes]
    adobe: int
    interval: int
    junk: int


class _Known(NamedTuple):
    """A header that was read: its bytes on both sides of height and width, and what it says."""

    before: bytes
    behind: bytes
    header: ImageHeader
    scan: ScanHeader


_known: dict[bytes, _Known] = {}
"""Headers by their first `_KEY_BYTES`, which hold a quantization table. An encoder's images differ in their
size alone, and two comparisons take a tenth of the time of reading."""
_KEY_BYTES, _MOST_KNOWN = 88, 256


def read(image: Buffer) -> ImageHeader:
    """The header of a JPEG (bytes that begin with FFD8), its route, or what is wrong with it."""
    data = bytes(image[: _WINDOWS[0]])
    known = _known.get(data[:_KEY_BYTES])
    if known is not None and data.startswith(known.before):
        at = len(known.before)
        if data.startswith(known.behind, at + 4) and jpeg_scans.ends_behind(image, known.scan.start):
            height, width = _size(data, at)
            if width and height:
                return ImageHeader("jpeg", width, height, _DALI, _OK, "", *known.header[6:])
    return _read(image)


def _read(image: Buffer) -> ImageHeader:
    for window in (*_WINDOWS, len(image)):
        # A copy, since bytes are indexed three times as fast as a memoryview.
        data = bytes(image[:window])
        found = _walk(data)
        if isinstance(found, ImageHeader):
            return found
        if found is not None:
            return _judge(image, data, found)
        if window >= len(image):
            break
    return refused("jpeg", Status.TRUNCATED, "JPEG: the headers end before the first scan")


def with_plain_sampling(image: Buffer) -> bytes:
    """A copy of a JPEG of one component that states factors of 1x1.

    Its scan isn't interleaved, so the factors say nothing, but nvJPEG's hardware decoder obeys them.
    """
    copy = bytes(image)
    found = _walk(copy)
    assert isinstance(found, _Segments), "only an image whose header is read has a layout"
    at = found.frame + 11
    return copy[:at] + ONE_COMPONENT + copy[at + 1 :]


def _walk(data: bytes) -> _Segments | ImageHeader | None:
    """The segments, what is wrong with them, or None where `data` ends before the first scan."""
    position, last = 2, len(data) - 4
    frame, interval, junk = -1, 0, 0
    app1: list[bytes] = []
    adobe, tables = _NO_ADOBE, b""
    for _ in _MARKERS:
        if position > last:
            return None
        word, length = _segment(data, position)
        if length > 1 and _SKIPPED[word]:
            position += 2 + length
            continue
        marker = word & 0xFF
        if marker == _SOS and word > 0xFF00 and length > 1:
            return _Segments(frame, position, tables, app1, adobe, interval, junk)
        if word <= 0xFF00 or marker == _FILL:
            found = _next_marker(data, position)
            if found is None:
                return None
            if word <= 0xFF00:
                junk += found.start() - position
                if junk > _MOST_JUNK:
                    return refused("jpeg", Status.UNDECODABLE, f"JPEG: no marker at byte {position}")
            position = found.start()
            continue
        if marker in _STANDALONE:
            position += 2
            continue
        if marker == _EOI:
            return refused("jpeg", Status.UNDECODABLE, "JPEG: ends before its first scan")
        if length < 2:  # Pillow and libjpeg pass over it where it holds nothing that they need
            junk += 1
            position += 4
            continue
        if marker == _DHT:
            tables += data[position + 4 : position + 2 + length]
        elif marker in _FRAMES:
            frame = position
        elif marker == _DRI:
            interval = int.from_bytes(data[position + 4 : position + 6], "big")
        elif marker == _APP1:
            app1.append(data[position + 4 : position + 2 + length])
        elif marker == _APP14:
            adobe = _transform(data[position + 4 : position + 2 + length])
        position += 2 + length
    return refused("jpeg", Status.TOO_LARGE, f"JPEG: more than {len(_MARKERS)} markers before the first scan")


def _judge(image: Buffer, data: bytes, found: _Segments) -> ImageHeader:
    """The header of an image whose segments up to the first scan lie in `data`."""
    frame = found.frame
    if frame < 0 or _segment(data, frame)[1] < 8:
        return refused("jpeg", Status.UNDECODABLE, "JPEG: a scan without a frame header")
    precision, height, width, components = _frame_fields(data, frame + 4)
    if not (width and height):
        return refused("jpeg", Status.UNDECODABLE, f"JPEG: a size of {width}x{height}")
    if precision != 8:
        return refused(
            "jpeg", Status.UNSUPPORTED, f"JPEG: {precision} bits a sample are not supported", width, height
        )
    parts = data[frame + 10 : frame + min(10 + 3 * components, 2 + _segment(data, frame)[1])]
    names, sampling, kind = parts[::3], parts[1::3], data[frame + 1]
    fields = Frame(kind in _PROGRESSIVE_FRAMES, width, height, names[: len(sampling)], sampling)
    start = found.scan + 2 + _segment(data, found.scan)[1]
    scan = ScanHeader(start, found.interval, bytes(image[found.scan + 4 : start]), found.tables)
    scans = jpeg_scans.check(image, found.scan, scan, fields)
    if scans is _NO_END:
        return refused("jpeg", Status.TRUNCATED, "JPEG: no end marker after the scan", width, height)
    if scans is _TOO_MANY:
        return refused("jpeg", Status.TOO_LARGE, f"JPEG: more than {MOST_SCANS} scans", width, height)
    # Four components are CMYK: the reference resizes before it converts to RGB, DALI after.
    plain = found.adobe != 0 and names != b"RGB" if components == 3 else components == 1
    plain = plain and scans is _WHOLE and not found.junk and not sampling.translate(None, _FACTORS)
    route = _DALI if plain and kind in _DALI_FRAMES else _PILLOW
    turned = orientation(found.app1) if found.app1 else UPRIGHT
    layout = b"" if fields.progressive else sampling
    judged = scan if kind in _ONE_SCAN_FRAMES and scan.content[1:-3:2] == names else None
    header = ImageHeader("jpeg", width, height, route, _OK, "", turned, layout, judged)
    if route is _DALI and judged and not found.interval and start <= _WINDOWS[0]:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[data[:_KEY_BYTES]] = _Known(data[: frame + 5], data[frame + 9 : start], header, scan)
    return header


def _transform(app14: bytes) -> int:
    """Adobe's colour transform (0: none, which nvJPEG's hardware decoder ignores and reads as YCbCr)."""
    if app14[:5] != b"Adobe":
        return _NO_ADOBE
    return app14[11] if len(app14) > 11 else 0


def refused(format: str, status: Status, message: str, width: int = 0, height: int = 0) -> ImageHeader:
    """The header of an image that is not decoded, with the reason."""
    return ImageHeader(
        format=format, width=width, height=height, route=Route.NOBODY, status=status, message=message
    )


def orientation(segments: Sequence[bytes]) -> int:
    """The EXIF orientation, 1 to 8, from the contents of the file's APP1 segments, in order.

    `UNCLEAR` for two EXIF segments, a damaged directory, or an orientation in XMP only: parsers disagree
    about these, so one of them must both read the tag and turn the pixels.
    """
    exif = [segment[len(_EXIF) :] for segment in segments if segment.startswith(_EXIF)]
    if len(exif) > 1:
        return UNCLEAR
    found = _tiff_orientation(exif[0]) if exif else None
    if found is not None:
        return found
    return UNCLEAR if any(b"tiff:Orientation" in segment for segment in segments) else UPRIGHT


def swaps_sides(orientation: int) -> bool:
    """Whether turning the image upright exchanges width and height."""
    return orientation >= 5


def _tiff_orientation(tiff: bytes) -> int | None:
    """The orientation in the first directory of `tiff`; None where it holds no such tag."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return UNCLEAR
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        entries = struct.iter_unpack(order + "HHIHH", tiff[start + 2 : start + 2 + 12 * count])
        found = [(kind, number, value) for tag, kind, number, value, _ in entries if tag == _ORIENTATION_TAG]
    except struct.error:
        return UNCLEAR
    if not found:
        return None
    kind, number, value = found[-1]
    plain = len(found) == 1 and kind == _SHORT and number == 1 and 1 <= value <= 8
    return value if plain else UNCLEAR
