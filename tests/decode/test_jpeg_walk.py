"""The fast walk over a JPEG's markers answers what the plain one does, whatever the bytes are."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from dali_aesthetic.decode import jpeg as jpeg_header
from tests.decode import jpeg_walk
from tests.decode.corpus import cases
from tests.decode.encoded import noise, save
from tests.decode.test_jpeg import segment, with_app1

EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
SEEDS = {
    "baseline": save(noise()),
    "progressive": save(noise(), progressive=True),
    "grey": save(noise(mode="L")),
    "cmyk": save(noise(mode="CMYK")),
    "restarts": save(noise(), restart_marker_blocks=1),
    "exif": with_app1(EXIF, save(noise())),
    "behind the window": with_app1(b"x" * 5000, save(noise())),
    "filled": save(noise()).replace(b"\xff\xdb", b"\xff\xff\xff\xdb"),
    "standalone": save(noise()).replace(b"\xff\xdb", b"\xff\x01\xff\xd0\xff\xdb"),
    "no marker 00": save(noise()).replace(b"\xff\xdb", segment(0x00, b"12345") + b"\xff\xdb"),
}


def same(data: bytes) -> None:
    assert jpeg_header.read(data) == jpeg_walk.read(data), data[:1000]
    assert jpeg_header.read(memoryview(data)) == jpeg_walk.read(memoryview(data)), data[:1000]


def markers(jpeg: bytes) -> Iterator[int]:
    """Where each segment before the first scan begins."""
    position = 2
    while jpeg[position + 1] != 0xDA:
        yield position
        alone = jpeg[position + 1] in (0x01, 0xD0)
        step = 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        position += 1 if jpeg[position + 1] == 0xFF else 2 if alone else step
    yield position


def test_on_the_whole_corpus() -> None:
    jpegs = [case.image for case in cases() if case.image is not None and case.image[:2] == b"\xff\xd8"]
    assert len(jpegs) > 100
    for image in jpegs:
        same(image)


@pytest.mark.parametrize("name", SEEDS)
def test_cut_anywhere(name: str) -> None:
    jpeg = SEEDS[name]
    for end in [*range(2, min(len(jpeg), 800)), *range(800, len(jpeg), 97)]:
        same(jpeg[:end])


@pytest.mark.parametrize("name", SEEDS)
def test_every_marker_in_every_place(name: str) -> None:
    jpeg = SEEDS[name]
    for position in markers(jpeg):
        for marker in range(256):
            same(jpeg[: position + 1] + bytes([marker]) + jpeg[position + 2 :])
            same(jpeg[:position] + bytes([marker]) + jpeg[position + 1 :])
        for length in (0, 1, 2, 3, 7, 8, 9, 0xFFFF):
            same(jpeg[: position + 2] + length.to_bytes(2, "big") + jpeg[position + 4 :])


@pytest.mark.parametrize("name", SEEDS)
def test_random_damage_in_the_headers(name: str) -> None:
    rng = random.Random(name)
    jpeg = SEEDS[name]
    scan = list(markers(jpeg))[-1]
    for _ in range(2000):
        changed = bytearray(jpeg)
        for _ in range(rng.choice((1, 1, 2, 4))):
            changed[rng.randrange(2, scan + 12)] = rng.choice((0xFF, 0x00, 0xDA, 0xD9, rng.randrange(256)))
        same(bytes(changed))


@pytest.mark.parametrize("name", SEEDS)
def test_a_header_like_one_that_was_read_before(name: str) -> None:
    jpeg = SEEDS[name]
    same(jpeg)  # from here on it is known
    for at in range(2, list(markers(jpeg))[-1] + 14):
        for value in (0, 1, 0xFF, jpeg[at] ^ 1):
            same(jpeg[:at] + bytes([value]) + jpeg[at + 1 :])
        same(jpeg[:at])
    for behind in (b"", b"\xff", b"\xff\xd8\xff\xd9", b"\xff\xd0" + jpeg[-2:]):
        same(jpeg[:-2] + behind)
