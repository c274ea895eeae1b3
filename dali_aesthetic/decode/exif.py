"""The EXIF orientation of a JPEG, from its APP1 segments, as Pillow understands it.

What isn't plain (two EXIF segments, a damaged directory, an orientation in XMP only) is answered with
`UNCLEAR`: parsers disagree about it, so that one of them must both read the tag and turn the pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

UPRIGHT, UNCLEAR = 1, 0
_EXIF = b"Exif\0\0"
_ORIENTATION, _SHORT = 0x0112, 3


def orientation(segments: Sequence[bytes]) -> int:
    """1 to 8, or `UNCLEAR`. `segments` are the contents of the file's APP1 segments, in order."""
    exif = [segment[len(_EXIF) :] for segment in segments if segment.startswith(_EXIF)]
    if len(exif) > 1:
        return UNCLEAR
    found = _read(exif[0]) if exif else None
    if found is not None:
        return found
    return UNCLEAR if any(b"tiff:Orientation" in segment for segment in segments) else UPRIGHT


def swaps_sides(orientation: int) -> bool:
    """Whether turning the image upright exchanges width and height."""
    return orientation >= 5


def _read(tiff: bytes) -> int | None:
    """The orientation in the first directory of `tiff`; None where it holds no such tag."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return UNCLEAR
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        entries = struct.iter_unpack(order + "HHIHH", tiff[start + 2 : start + 2 + 12 * count])
        found = [(kind, number, value) for tag, kind, number, value, _ in entries if tag == _ORIENTATION]
    except struct.error:
        return UNCLEAR
    if not found:
        return None
    kind, number, value = found[-1]
    plain = len(found) == 1 and kind == _SHORT and number == 1 and 1 <= value <= 8
    return value if plain else UNCLEAR
