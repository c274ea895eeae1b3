"""PNG and WebP by the extra: Pillow's pixels and refusals, the same bits as without it, bounded memory."""

from __future__ import annotations

import io
import random
import weakref
import zlib
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dali_aesthetic.decode import batches as batching
from dali_aesthetic.decode import codecs
from dali_aesthetic.decode import decoder as decoder_module
from dali_aesthetic.decode.headers import Limits, probe
from dali_aesthetic.decode.pillow import Rescued, rescue
from dali_aesthetic.types import Buffer, ImageBatch, Route, Status
from tests.decode.encoded import DEVICES, decode_with, decoder, noise, photo, pixels_by_row, save
from tests.decode.pngs import chunk, png

NAMES = ("astronaut", "coffee", "chelsea", "rocket")
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}),
    ("PNG", {"compress_level": 0}),
    ("WEBP", {}),
    ("WEBP", {"quality": 20}),
    ("WEBP", {"lossless": True, "quality": 0, "method": 0}),
]


def by_pillow(image: bytes, mode: str = "RGB") -> npt.NDArray[np.uint8] | None:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return np.asarray(opened.convert(mode))
    except Exception:
        return None


def by_codec(image: Buffer) -> npt.NDArray[np.uint8] | None:
    """None where it raises."""
    header = probe(image, Limits())
    assert (header.route, header.format in codecs.formats()) == (Route.DALI, True)
    try:
        return codecs.decode(image, header)
    except Exception:
        return None


def random_png(colour_type: int, width: int, height: int, **more: Any) -> bytes:
    shape = height, width, 3 if colour_type == 2 else 1
    pixels = np.random.default_rng(width).integers(0, 256, shape, np.uint8)
    return png(pixels, colour_type=colour_type, **more)


@pytest.mark.parametrize(("format", "options"), FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_real_photos_are_pillows_to_the_bit(name: str, format: str, options: dict[str, Any]) -> None:
    large = photo(name).crop((0, 0, 451, 300))
    for image in (large, large.convert("L"), photo(name, 333, 77), photo(name, 32, 499)):
        encoded = save(image, format, **options)
        np.testing.assert_array_equal(by_codec(encoded), by_pillow(encoded))
        np.testing.assert_array_equal(by_codec(memoryview(encoded)), by_pillow(encoded))


@pytest.mark.parametrize(("colour_type", "adam7"), list(product([0, 2], [False, True])))
def test_interlaced_and_transparent_colours_are_pillows_to_the_bit(colour_type: int, adam7: bool) -> None:
    beside = {0: b"", 2: chunk(b"tRNS", bytes(6)) + chunk(b"gAMA", (30000).to_bytes(4, "big"))}
    for width, height in [(32, 32), (33, 40), (100, 37), (64, 2065), (2065, 63)]:
        encoded = random_png(colour_type, width, height, adam7=adam7, chunks=beside[colour_type])
        np.testing.assert_array_equal(by_codec(encoded), by_pillow(encoded))


def test_image_data_in_pieces_end_where_pillow_ends_them() -> None:
    whole = random_png(2, 40, 40)
    start = whole.index(b"IDAT") - 4
    data = whole[start + 8 : -16]
    halves = chunk(b"IDAT", data[:700]), chunk(b"IDAT", b""), chunk(b"IDAT", data[700:])
    end = chunk(b"IEND", b"")
    for parts in (halves, (*halves, halves[0]), (*halves, chunk(b"tEXt", b"a\0b"), halves[2])):
        encoded = whole[:start] + b"".join(parts) + end
        np.testing.assert_array_equal(by_codec(encoded), by_pillow(whole))
    wrong_sum = whole[:-13] + bytes([whole[-13] ^ 1]) + whole[-12:]
    np.testing.assert_array_equal(by_codec(wrong_sum), by_pillow(whole))
    split = whole[:start] + halves[0] + chunk(b"tEXt", b"a\0b") + halves[2] + end
    assert by_codec(split) is by_pillow(split) is None


def changed(rng: random.Random, image: bytes) -> bytes:
    """With changed bytes; of a PNG, whose sums show those, also with changed rows under right sums."""
    if image.startswith(b"\x89PNG") and rng.random() < 0.7:
        start = image.index(b"IDAT") - 4
        rows = bytearray(zlib.decompress(image[start + 8 : -16]))
        position = rng.randrange(len(rows))
        match rng.randrange(4):
            case 0:
                del rows[position:]
            case 1:
                rows += bytes(position)
            case 2:
                rows[position] ^= 1 << rng.randrange(8)
            case 3:  # filters there are, and one there isn't
                stride = 1 + int.from_bytes(image[16:20], "big") * {0: 1, 2: 3, 6: 4}[image[25]]
                rows[position // stride * stride] = rng.randrange(6)
        return image[:start] + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    damaged = bytearray(image)
    for _ in range(rng.randint(1, 3)):
        damaged[rng.randrange(33, len(damaged))] = rng.randrange(256)
    return bytes(damaged)


def test_of_damaged_images_it_takes_only_what_pillow_takes_with_pillows_pixels() -> None:
    rng = random.Random(0)
    small = photo("coffee", 50, 40)
    seeds = [save(image, *form) for image in (small, small.convert("L")) for form in [("PNG",), ("WEBP",)]]
    seeds += [save(small, "WEBP", lossless=True), random_png(2, 37, 40, adam7=True)]
    taken = refused = 0
    for _ in range(1500):
        image = changed(rng, rng.choice(seeds))
        if probe(image, Limits()).route is not Route.DALI:
            continue
        pixels = by_codec(image)
        if pixels is None:
            refused += 1
        else:
            taken += 1
            np.testing.assert_array_equal(pixels, by_pillow(image))
    assert min(taken, refused) > 200


def test_a_png_that_unpacks_to_more_than_its_pixels_is_left_to_pillow() -> None:
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    whole = random_png(2, 40, 40)
    start = whole.index(b"IDAT") - 4
    assert by_codec(whole[:start] + chunk(b"IDAT", packed) + chunk(b"IEND", b"")) is None


def test_pngs_with_alpha_are_pillows_to_the_bit_also_where_they_are_damaged() -> None:
    """Their transform stays Pillow's, which weighs colours with alpha."""
    rng = random.Random(0)
    opaque = photo("coffee", 90, 70).convert("RGBA")
    seeds = [save(image, "PNG") for image in (opaque, noise(64, 48, "RGBA"))]
    taken = 0
    for _ in range(600):
        image = changed(rng, rng.choice(seeds))
        expected = by_pillow(image, "RGBA")
        for whole in (image, memoryview(image)):
            width, height = (int.from_bytes(image[at : at + 4], "big") for at in (16, 20))
            pixels = codecs.decode_rgba(whole, width, height)
            if pixels is not None:
                np.testing.assert_array_equal(pixels, expected)
                taken += 1
    assert taken > 200


def test_avifs_are_pillows_to_the_bit_also_where_they_are_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow holds the interpreter lock while it decodes them. Its transform stays."""
    rng, coffee = random.Random(0), photo("coffee", 90, 70)
    kinds = [coffee, coffee.convert("L"), noise(64, 48, "RGBA")]
    options = [{"subsampling": subsampling} for subsampling in ("4:2:0", "4:4:4", "4:2:2", "4:0:0")]
    seeds = [save(kind, "AVIF", speed=9, **option) for kind, option in product(kinds, options)]
    taken: list[bool] = []
    decode = codecs.decode_avif
    monkeypatch.setattr(
        codecs, "decode_avif", lambda *given: taken.append((found := decode(*given)) is not None) or found
    )

    def transformed(image: bytes) -> Rescued:
        return rescue(memoryview(image), probe(image, Limits()), 32, Limits())

    images = [*seeds, *(changed(rng, rng.choice(seeds)) for _ in range(300))]
    animation = save(coffee, "AVIF", speed=9, save_all=True, append_images=[coffee.rotate(90)])
    found = [transformed(image) for image in [*images, animation]]
    assert sum(taken[: len(seeds)]) == len(seeds) - 1  # gray with alpha stays Pillow's
    assert len(seeds) < len(taken) <= len(images)
    monkeypatch.setattr(codecs, "imagecodecs", None)
    for image, rescued in zip([*images, animation], found, strict=True):
        expected = transformed(image)
        assert rescued.header == expected.header
        np.testing.assert_array_equal(rescued.pixels_SSC, expected.pixels_SSC)  # type: ignore[arg-type]


def odd_images() -> list[bytes]:
    """What goes to every decoder there is, whole and damaged."""
    rgb, rgba = photo("coffee", 120, 90), noise(60, 44, "RGBA")
    whole = [save(photo(name, 200 + 9 * i, 150), FORMS[i][0], **FORMS[i][1]) for i, name in enumerate(NAMES)]
    kinds = [rgb.convert(mode) for mode in ("L", "P", "1", "LA")] + [rgba, rgba.quantize(9)]
    pngs = [save(kind, "PNG") for kind in [*kinds, noise(50, 40, "I;16"), photo("coffee", 1, 1)]]
    frames = {"save_all": True, "append_images": [rgb.rotate(90)]}
    others = [save(rgb, "PNG", **frames), save(rgb, "WEBP", **frames), save(rgba, "WEBP"), save(rgb)]
    data = save(rgb, "PNG")
    damaged = [whole[0][:-5000], whole[3][:-500], data[:1500] + b"damage" + data[1506:]]
    return [*whole, *pngs, *others, random_png(0, 40, 50, adam7=True), *damaged]


def decoded(images: list[bytes], batch_size: int, device: str) -> list[ImageBatch]:
    return decode_with(decoder(batch_size, device), images, batch_size)


@pytest.mark.parametrize("device", DEVICES)
def test_pixels_and_statuses_have_the_same_bits_without_the_extra(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do neighbours, order and the batches' size show."""
    images = odd_images()
    order = np.random.default_rng(0).permutation(len(images))
    seen: list[dict[int, tuple[Status, bytes | None]]] = []
    as_is, coded = np.arange(len(images)), codecs.formats()
    for batch_size, rows, formats in [(64, as_is, coded), (5, order, coded), (64, as_is, frozenset[str]())]:
        monkeypatch.setattr(codecs, "formats", lambda formats=formats: formats)
        results = []
        for batch in decoded([images[row] for row in rows], batch_size, device):
            pixels = pixels_by_row(batch)
            results += [
                (header.status, pixels[row].tobytes() if row in pixels else None)
                for row, header in enumerate(batch.headers)
            ]
        seen.append(dict(zip(map(int, rows), results, strict=True)))
    assert seen[0] == seen[1] == seen[2]
    assert sum(status is not Status.OK for status, _ in seen[0].values()) == 3


def test_a_damaged_image_goes_to_pillow_and_its_neighbours_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    rescued: list[int] = []
    rescue = decoder_module.rescue

    def counted(*args: Any) -> Any:
        rescued.append(len(args[0]))
        return rescue(*args)

    monkeypatch.setattr(decoder_module, "rescue", counted)
    images = [save(photo(name, 90, 80), "PNG") for name in NAMES]
    cut = images[1].index(b"IDAT") + 2000
    images[1] = images[1][:cut] + b"damage" + images[1][cut + 6 :]
    (batch,) = decoded(images, 4, "cpu")
    assert rescued == [len(images[1])]
    assert [header.status is Status.OK for header in batch.headers] == [True, False, True, True]
    (alone,) = decoded(images[1:2], 1, "cpu")
    assert alone.headers[0].status is not Status.OK
    assert not len(alone.rows_N)


@pytest.mark.parametrize("device", DEVICES)
def test_decoded_pixels_that_wait_are_of_three_chunks_at_most(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [save(photo("coffee", 100, 100), "PNG")] * 4 + [save(photo("rocket", 100, 100), "WEBP")] * 4
    seen, most = list[weakref.ref[Any]](), 0
    decode = codecs.decode

    class Watched(np.ndarray[Any, Any]):
        pass

    def watched(*args: Any) -> Any:
        nonlocal most
        pixels = decode(*args).view(Watched)
        seen.append(weakref.ref(pixels))
        most = max(most, sum(ref() is not None for ref in seen))
        return pixels

    monkeypatch.setattr(codecs, "decode", watched)
    monkeypatch.setattr(batching, "_MOST_CPU_BYTES", 3 * 30_000)
    used = decoder(8, device)
    batches = decode_with(used, images * 5, 8)
    assert sum(len(batch.rows_N) for batch in batches) == 40
    assert 3 < most <= 3 * 3
    given = used.decode(iter([batch.encoded for batch in batches]))
    next(given)
    given.close()
    assert sum(len(batch.rows_N) for batch in decode_with(used, images, 8)) == 8
    used.close()
