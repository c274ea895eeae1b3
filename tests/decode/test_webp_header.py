"""WebP headers: the three first chunks, damage, cuts at every byte."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dali_aesthetic.decode import headers
from dali_aesthetic.types import Route, Status


def noise(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 4), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encode(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return buffer.getvalue()


LOSSY, LOSSLESS = encode(noise()), encode(noise(), lossless=True)
ICC = encode(noise(), icc_profile=b"a profile")
TAGGED = encode(noise(), exif=Image.Exif().tobytes() + bytes(8))


@pytest.mark.parametrize(
    ("image", "chunk", "route", "orientation"),
    [
        (LOSSY, b"VP8 ", Route.DALI, 1),
        (LOSSLESS, b"VP8L", Route.DALI, 1),
        (ICC, b"VP8X", Route.DALI, 1),
        (TAGGED, b"VP8X", Route.DALI, 0),
        (encode(noise("RGBA")), b"VP8X", Route.PILLOW, 1),
        (encode(noise("RGBA"), lossless=True), b"VP8L", Route.PILLOW, 1),
        (
            encode(noise(), save_all=True, append_images=[noise().rotate(180)]),
            b"VP8X",
            Route.PILLOW,
            1,
        ),
    ],
)
def test_size_and_route_of_each_kind(image: bytes, chunk: bytes, route: Route, orientation: int) -> None:
    assert image[12:16] == chunk
    header = headers.read_webp(memoryview(image))
    assert (header.status, header.route) == (Status.OK, route)
    assert (header.width, header.height, header.orientation) == (40, 24, orientation)


@pytest.mark.parametrize("image", [LOSSY, LOSSLESS, ICC])
def test_a_cut_at_any_byte_is_truncated(image: bytes) -> None:
    for end in range(12, len(image)):
        assert headers.read_webp(image[:end]).status is Status.TRUNCATED, end


@pytest.mark.parametrize(
    "damaged",
    [
        LOSSY[:12] + b"WHAT" + LOSSY[16:],
        LOSSY[:23] + b"\0\0\0" + LOSSY[26:],
        LOSSLESS[:20] + b"\0" + LOSSLESS[21:],
        LOSSY[:26] + b"\0\0" + LOSSY[28:],
    ],
)
def test_damaged_first_chunks_are_undecodable(damaged: bytes) -> None:
    assert headers.read_webp(damaged).status is Status.UNDECODABLE


def test_bytes_behind_the_riff_chunk_are_harmless() -> None:
    assert headers.read_webp(LOSSY + bytes(100)).status is Status.OK
