"""JPEG scans: a walk over the markers in and between the entropy-coded data, without decoding it.

Decoders make pictures of damaged scans: libjpeg fills with grey, nvJPEG's hardware leaves what another image
left in its memory, and neither reports it. The markers show most damage: one search finds the first byte FF
that is no stuffed one (T.81, B.1.1.5), which in a whole baseline JPEG is the end marker. What is odd here
goes to Pillow, which refuses what the reference refuses. Data that are well-formed but too few show in
`scan_check` alone."""

from __future__ import annotations

import re
from enum import Enum
from itertools import islice
from typing import NamedTuple

import numpy as np

from dali_aesthetic.types import Buffer, ScanHeader

MOST_SCANS = 100
"""More are refused: each scan of a progressive JPEG can cost a pass over the picture for a few bytes.
Encoders write up to a few dozen; libjpeg-turbo's tools have such a cap as an option (-maxscans)."""
_EOI, _SOS, _DHT, _DQT, _DRI, _COM = 0xD9, 0xDA, 0xC4, 0xDB, 0xDD, 0xFE
_BETWEEN = frozenset({_DHT, _DQT, _DRI, _COM, *range(0xE0, 0xF0)})
"""Segments that may stand between two scans."""
_marker = re.compile(rb"\xff[^\x00]").search
_other_marker = re.compile(rb"\xff[^\x00\xd0-\xd7]").search
_restarts = re.compile(rb"\xff([\xd0-\xd7])").findall
_scan_markers = re.compile(rb"\xff\xda").finditer
_end_marker = re.compile(rb"\xff\xd9").search
_WINDOW = 1 << 20
_CYCLE = bytes(range(0xD0, 0xD8))


class Frame(NamedTuple):
    """A frame header's fields; `names` and `sampling` (both factors in one byte) hold one a component."""

    progressive: bool
    width: int
    height: int
    names: bytes
    sampling: bytes


class Scans(Enum):
    """The outcome of the walk."""

    WHOLE = "whole"
    SUSPECT = "suspect"
    NO_END = "no end marker"
    TOO_MANY = "too many scans"


def check(image: Buffer, at: int, scan: ScanHeader, frame: Frame) -> Scans:
    """Walk from the first scan's marker at byte `at` to the end marker."""
    if not (frame.progressive or scan.interval):
        header, number = scan.content, len(frame.names)
        has_all = header[:1] == bytes([number]) and header[1 : 1 + 2 * number : 2] == frame.names
        if has_all and len(header) >= 4 + 2 * number and ends_behind(image, at + 4 + len(header)):
            return Scans.WHOLE
    outcome = _walk(image, at, frame, scan.interval)
    if outcome is not Scans.SUSPECT:
        return outcome
    if sum(1 for _ in islice(_scan_markers(image, at), MOST_SCANS + 1)) > MOST_SCANS:
        return Scans.TOO_MANY
    return outcome if _end_marker(image, at) else Scans.NO_END


def ends_behind(image: Buffer, start: int) -> bool:
    """Whether the end marker is the first one behind the data that begin at byte `start`."""
    marker = first_marker(image, start)
    return marker >= 0 and image[marker + 1] == _EOI


def first_marker(image: Buffer, start: int) -> int:
    """The offset of the first FF behind `start` that isn't followed by 00; -1 without one.

    By numpy, because nearly every image of a run is searched to its end. A regular expression takes five
    times as long and holds the interpreter lock meanwhile: an fp8 run on an H200 lost a fifth of its rate.
    """
    bytes_B = np.frombuffer(image, np.uint8)
    for first in range(start, len(bytes_B) - 1, _WINDOW):
        part_B = bytes_B[first : first + _WINDOW + 1]
        is_marker_B = part_B[:-1] == 0xFF
        ones_B = is_marker_B.view(np.uint8)
        np.minimum(ones_B, part_B[1:], out=ones_B)  # "and not 0", in one pass less
        if is_marker_B[found := int(is_marker_B.argmax())]:
            return first + found
    return -1


def _walk(image: Buffer, position: int, frame: Frame, interval: int) -> Scans:
    coefficients = {name: bytearray(b"\xff" * 64) for name in frame.names}
    for _ in range(MOST_SCANS):
        length = _length(image, position)
        header = bytes(image[position + 4 : position + 2 + length])
        if not (_note(header, frame, coefficients) and length == len(header) + 2):
            return Scans.SUSPECT
        data = position + 2 + length
        found = (_other_marker if interval else _marker)(image, data)
        if found is None:
            return Scans.NO_END
        position = found.start()
        if interval and not _in_order(image, data, position, _restart_count(header, frame, interval)):
            return Scans.SUSPECT
        is_last = not frame.progressive and header[0] == len(frame.names)
        while image[position + 1] != _SOS:
            marker, length = image[position + 1], _length(image, position)
            if marker == _EOI:
                return Scans.SUSPECT if any(map(any, coefficients.values())) else Scans.WHOLE
            if marker not in _BETWEEN or length < 2:
                return Scans.SUSPECT
            if marker == _DRI:
                interval = int.from_bytes(image[position + 4 : position + 6], "big")
            position += 2 + length
            if position + 4 > len(image):
                return Scans.NO_END
            if image[position] != 0xFF:
                return Scans.SUSPECT
        if is_last:
            return Scans.SUSPECT
    return Scans.TOO_MANY


def _note(header: bytes, frame: Frame, coefficients: dict[int, bytearray]) -> bool:
    """Note what the scan refines: each coefficient's lowest bit so far. False for a header that lies."""
    number = header[0] if header else 0
    names = header[1 : 1 + 2 * number : 2]
    if not number or len(header) < 4 + 2 * number or not all(name in coefficients for name in names):
        return False
    first, last, low = header[1 + 2 * number], header[2 + 2 * number], header[3 + 2 * number] & 15
    if not frame.progressive:
        first, last, low = 0, 63, 0
    if not first <= last < 64:
        return False
    for name in names:
        coefficients[name][first : last + 1] = bytes([low]) * (last + 1 - first)
    return True


def _restart_count(header: bytes, frame: Frame, interval: int) -> int:
    """The restart markers in a scan: one between any two intervals (T.81, B.2.1 and A.2)."""
    across = max(factors >> 4 for factors in frame.sampling) or 1
    down = max(factors & 15 for factors in frame.sampling) or 1
    if header[0] == 1:
        factors = frame.sampling[frame.names.rindex(header[1])]
        columns = -(-frame.width * (factors >> 4) // across)
        rows = -(-frame.height * (factors & 15) // down)
        units = -(-columns // 8) * -(-rows // 8)
    else:
        units = -(-frame.width // (8 * across)) * -(-frame.height // (8 * down))
    return -(-units // interval) - 1


def _in_order(image: Buffer, start: int, end: int, count: int) -> bool:
    found = b"".join(_restarts(image, start, end))
    return len(found) == count and found == (_CYCLE * (count // 8 + 1))[:count]


def _length(image: Buffer, position: int) -> int:
    return int.from_bytes(image[position + 2 : position + 4], "big")
