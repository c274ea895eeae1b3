"""A PNG writer for what Pillow doesn't write: 16 bits, few bits, Adam7, single chunks, wrong sizes."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, row step, column step of each pass."""


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk with its length and checksum."""
    checksum = zlib.crc32(kind + content)
    return len(content).to_bytes(4, "big") + kind + content + checksum.to_bytes(4, "big")


def png(
    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
    *,
    colour_type: int,
    bit_depth: int = 8,
    adam7: bool = False,
    size: tuple[int, int] | None = None,
    chunks: bytes = b"",
) -> bytes:
    """`pixels` [rows, columns, samples] as PNG. `size` is what the header claims instead of the truth."""
    width, height = size or (pixels.shape[1], pixels.shape[0])
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header += bytes([bit_depth, colour_type, 0, 0, int(adam7)])
    passes = [pixels[r::rs, c::cs] for r, c, rs, cs in _ADAM7] if adam7 else [pixels]
    data = zlib.compress(b"".join(_rows(part, bit_depth) for part in passes))
    body = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _rows(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], bit_depth: int) -> bytes:
    """Filtered rows (filter 0, none)."""
    return b"".join(b"\0" + _packed(row.ravel(), bit_depth) for row in pixels)


def _packed(samples: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], bit_depth: int) -> bytes:
    if bit_depth >= 8:
        return samples.astype(f">u{bit_depth // 8}").tobytes()
    bits = (samples[:, None] >> np.arange(bit_depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8).ravel()).tobytes()
