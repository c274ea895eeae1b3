"""PNG headers: colour types, damage, cuts at every byte."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dali_aesthetic.decode import headers
from dali_aesthetic.types import Route, Status


def encode(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def noise(mode: str) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(pixels).convert(mode)


PLAIN = encode(noise("RGB"))


@pytest.mark.parametrize(
    ("mode", "route"),
    [
        ("RGB", Route.DALI),
        ("L", Route.DALI),
        ("P", Route.PILLOW),
        ("1", Route.PILLOW),
        ("LA", Route.PILLOW),
        ("RGBA", Route.PILLOW),
        ("I;16", Route.PILLOW),
    ],
)
def test_modes_that_the_reference_resizes_differently_go_to_pillow(mode: str, route: Route) -> None:
    header = headers.read_png(encode(noise(mode)))
    assert (header.status, header.route, header.width, header.height) == (Status.OK, route, 40, 24)


@pytest.mark.parametrize(("offset", "size"), [(16, "0x24"), (20, "40x0")])
def test_a_size_of_zero_is_undecodable(offset: int, size: str) -> None:
    header = headers.read_png(PLAIN[:offset] + bytes(4) + PLAIN[offset + 4 :])
    assert (header.status, header.route) == (Status.UNDECODABLE, Route.NOBODY)
    assert size in header.message


def test_another_first_chunk_is_undecodable() -> None:
    header = headers.read_png(PLAIN[:12] + b"iCCP" + PLAIN[16:])
    assert (header.status, header.route) == (Status.UNDECODABLE, Route.NOBODY)


def test_a_missing_end_is_truncated() -> None:
    header = headers.read_png(PLAIN[: PLAIN.index(b"IEND")])
    assert (header.status, header.width, header.height) == (Status.TRUNCATED, 40, 24)


@pytest.mark.parametrize("behind", [bytes(100), b"<html>" * 2000])
def test_what_follows_the_end_is_harmless(behind: bytes) -> None:
    assert headers.read_png(PLAIN + behind).status is Status.OK


def test_a_cut_at_any_byte_is_truncated() -> None:
    for end in range(8, PLAIN.index(b"IEND") + 4):
        assert headers.read_png(memoryview(PLAIN)[:end]).status is Status.TRUNCATED, end
