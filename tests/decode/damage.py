"""Encoded images changed byte by byte: headers that lie, flipped bits, missing parts."""

from __future__ import annotations

import random


def without_huffman_tables(jpeg: bytes) -> bytes:
    """A JPEG that passes the header check and that no decoder decodes."""
    start = jpeg.index(b"\xff\xc4")
    length = int.from_bytes(jpeg[start + 2 : start + 4], "big")
    return jpeg[: start + 4] + b"\xff" * (length - 2) + jpeg[start + 2 + length :]


def frame_at(jpeg: bytes) -> int:
    """Where the frame header's marker stands."""
    scan = jpeg.index(b"\xff\xda")
    return max(jpeg.rfind(bytes([0xFF, marker, 0]), 0, scan) for marker in (0xC0, 0xC2))


def edited(data: bytes, offset: int, content: bytes) -> bytes:
    """`data` with `content` written over it from `offset` on."""
    return data[:offset] + content + data[offset + len(content) :]


def as_440(jpeg: bytes) -> bytes:
    """A 4:2:2 JPEG whose blocks are read as 4:4:0 ones: another picture, but a valid one."""
    frame = frame_at(jpeg)
    size = jpeg[frame + 7 : frame + 9] + jpeg[frame + 5 : frame + 7]
    return edited(edited(jpeg, frame + 5, size), frame + 11, b"\x12")


def height_times(jpeg: bytes, factor: float) -> bytes:
    """The same scan under a frame header that states another height."""
    frame = frame_at(jpeg)
    height = int.from_bytes(jpeg[frame + 5 : frame + 7], "big")
    return edited(jpeg, frame + 5, int(height * factor).to_bytes(2, "big"))


def without_app14(jpeg: bytes) -> bytes:
    """Without Adobe's marker."""
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


def with_footer(tga: bytes) -> bytes:
    """The footer is all that tells a TGA from other bytes; old writers leave it out."""
    footer = bytes(8) + b"TRUEVISION-XFILE.\0"
    return tga if tga.endswith(footer[8:]) else tga + footer


def flips(data: bytes, seed: int, count: int, start: int, end: int | None = None) -> bytes:
    """`count` random bytes between `start` and `end` changed."""
    rng, changed = random.Random(seed), bytearray(data)
    for _ in range(count):
        changed[rng.randrange(start, end or len(data) - 2)] ^= rng.randrange(1, 256)
    return bytes(changed)
