"""The header check as a whole: formats by magic, limits, and bytes that mean nothing."""

from __future__ import annotations

import io
import random
import zlib

import numpy as np
import pytest
from PIL import Image

from dali_aesthetic.decode import headers
from dali_aesthetic.decode.headers import Limits, probe
from dali_aesthetic.decode.pillow import decode_reference, rescue
from dali_aesthetic.types import Route, Status
from tests.decode.pngs import chunk

LIMITS = Limits()


def encode(format: str, mode: str = "RGB", size: tuple[int, int] = (50, 40)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format)
    return buffer.getvalue()


def tga() -> bytes:
    return encode("TGA").removesuffix(b"TRUEVISION-XFILE.\x00") + b"TRUEVISION-XFILE.\x00"


@pytest.mark.parametrize(
    ("image", "name", "route"),
    [
        (encode("JPEG"), "jpeg", Route.DALI),
        (encode("PNG"), "png", Route.DALI),
        (encode("WEBP"), "webp", Route.DALI),
        (encode("GIF"), "gif", Route.PILLOW),
        (encode("BMP"), "bmp", Route.PILLOW),
        (encode("TIFF"), "tiff", Route.PILLOW),
        (b"MM\x00*" + bytes(40), "tiff", Route.PILLOW),
        (encode("JPEG2000"), "jpeg2000", Route.PILLOW),
        (b"\xff\x4f\xff\x51" + bytes(40), "jpeg2000", Route.PILLOW),
        (encode("ICO"), "ico", Route.PILLOW),
        (encode("PPM"), "pnm", Route.PILLOW),
        (encode("PPM", "L"), "pnm", Route.PILLOW),
        (encode("PPM", "1"), "pnm", Route.PILLOW),
        *((b"P%d\n2 1\n" % kind + b"1 " * 9, "pnm", Route.PILLOW) for kind in (1, 2, 3)),
        (b"II+\0" + bytes(40), "tiff", Route.PILLOW),
        (b"\0\0\0\x18ftypavis\0\0\0\0avismif1" + bytes(40), "avif", Route.PILLOW),
        (encode("AVIF"), "avif", Route.PILLOW),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif" + bytes(40), "avif", Route.PILLOW),
        (tga(), "tga", Route.PILLOW),
        (encode("TGA").removesuffix(bytes(8) + b"TRUEVISION-XFILE.\x00"), "tga", Route.PILLOW),
    ],
)
def test_formats_are_told_by_their_bytes(image: bytes, name: str, route: Route) -> None:
    for form in (image, memoryview(image)):
        header = probe(form, LIMITS)
        assert (header.status, header.format, header.route) == (Status.OK, name, route)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "heic"),
        (b"\0\0\0\x18ftyphevc\0\0\0\0hevc", "heic"),
        (b"\xff\x0a" + bytes(30), "jpegxl"),
        (b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a", "jpegxl"),
        (b"8BPS\0\x01", "psd"),
        (b"MM\0+" + bytes(40), "big-endian BigTIFF"),
        (encode("DDS"), "dds"),
        (encode("PCX"), "pcx"),
        (encode("ICNS", size=(64, 64)), "icns"),
        (b"qoif\0\0\0\x40", "qoi"),
        (b"\x76\x2f\x31\x01\2\0\0\0", "exr"),
        (b"II\xbc\x01", "jpegxr"),
        (b"\0\0\2\0\1\0\x20\x20", "cur"),
        (encode("PNG")[:8] + b"\0\0\0\4CgBI\x50\0\x20\2\x2b\xd5\xb3\x7f" + encode("PNG")[8:], "cgbi"),
        (b"%PDF-1.7", "pdf"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "video"),
        (b"\xff\xff\xff\xffftyp", "video"),
        (b"\x1aE\xdf\xa3webm", "video"),
    ],
)
def test_formats_that_nobody_here_decodes_are_named(image: bytes, name: str) -> None:
    header = probe(image, LIMITS)
    assert (header.status, header.format, header.route) == (Status.UNSUPPORTED, name, Route.NOBODY)
    assert name in header.message


@pytest.mark.parametrize(
    "data",
    [b"<html>", b'{"a": 1}', b"<svg/>", bytes(100), b"\xff", b"GIF", b"%!PS-Adobe", b"\0" + b"\xff\xd8"],
)
def test_no_image_is_undecodable_and_shows_its_beginning(data: bytes) -> None:
    header = probe(data, LIMITS)
    assert (header.status, header.route) == (Status.UNDECODABLE, Route.NOBODY)
    assert repr(data[:12]) in header.message


def test_no_bytes_are_empty() -> None:
    assert probe(b"", LIMITS).status is Status.EMPTY
    assert probe(memoryview(b""), LIMITS).status is Status.EMPTY


def test_a_size_that_is_known_is_held_to_the_limits() -> None:
    png = encode("PNG")
    assert probe(png, Limits(max_pixels=50 * 40)).status is Status.OK
    header = probe(png, Limits(max_pixels=50 * 40 - 1))
    assert (header.status, header.route) == (Status.TOO_LARGE, Route.NOBODY)
    assert (header.width, header.height) == (50, 40)
    assert "50x40: 2,000 pixels, the limit is 1,999" in header.message


def sized_png(width: int, height: int, num_bytes: int) -> bytes:
    png = encode("PNG")
    png = png[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:]
    return png + bytes(num_bytes - len(png))


def test_many_pixels_a_byte_are_a_bomb_only_above_sixteen_megapixels() -> None:
    assert probe(sized_png(4000, 4000, 10_000), LIMITS).status is Status.OK
    assert probe(sized_png(4000, 4001, 10_000), LIMITS).status is Status.TOO_LARGE
    assert probe(sized_png(4000, 4001, 16_004), LIMITS).status is Status.OK


def test_giants_go_to_pillow() -> None:
    assert probe(sized_png(8000, 4000, 100_000), LIMITS).route is Route.DALI
    assert probe(sized_png(8000, 4001, 100_000), LIMITS).route is Route.PILLOW


def test_tiny_images_go_to_pillow() -> None:
    assert probe(encode("JPEG", size=(32, 500)), LIMITS).route is Route.DALI
    assert probe(encode("JPEG", size=(31, 500)), LIMITS).route is Route.PILLOW
    assert probe(encode("PNG", size=(500, 1)), LIMITS).route is Route.PILLOW


SEEDS = [
    encode("JPEG"),
    encode("PNG"),
    encode("WEBP"),
    tga(),
    encode("AVIF"),
    b"\xff\xd8",
    b"RIFF\xff\xff\xff\xff",
]


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_and_mutations_never_raise(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(1500):
        data = bytearray(rng.choice(SEEDS))
        if rng.random() < 0.5:
            data[rng.randrange(2, 30) :] = rng.randbytes(rng.randrange(200))
        for _ in range(rng.randrange(8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        header = probe(bytes(data), LIMITS)
        assert (header.route is Route.NOBODY) == (header.status is not Status.OK)
        assert bool(header.message) == (header.status is not Status.OK)


def test_one_byte_is_undecodable_whatever_it_is() -> None:
    assert {probe(bytes([value]), LIMITS).status for value in range(256)} == {Status.UNDECODABLE}


def encode_png(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def noise(mode: str = "RGB") -> Image.Image:
    channels = 4 if mode == "RGBA" else 3
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, channels), np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(pixels).convert(mode)


PLAIN_PNG = encode_png(noise("RGB"))


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
    header = headers.read_png(encode_png(noise(mode)))
    assert (header.status, header.route, header.width, header.height) == (Status.OK, route, 40, 24)


@pytest.mark.parametrize(("offset", "size"), [(16, "0x24"), (20, "40x0")])
def test_a_size_of_zero_is_undecodable(offset: int, size: str) -> None:
    header = headers.read_png(PLAIN_PNG[:offset] + bytes(4) + PLAIN_PNG[offset + 4 :])
    assert (header.status, header.route) == (Status.UNDECODABLE, Route.NOBODY)
    assert size in header.message


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"pHYs", b"short"),
        chunk(b"tRNS", b"short"),
        chunk(b"iCCP", b"k\0\1" + zlib.compress(b"")),
        chunk(b"fdAT", bytes(4) + PLAIN_PNG[41:-16]),
        chunk(b"tEXt", b"k\0v")[:-1] + b"?",
    ],
)
def test_damage_before_the_image_data_is_for_pillow_to_judge(extra: bytes) -> None:
    refused_by_pillow(PLAIN_PNG[:33] + extra + PLAIN_PNG[33:])


@pytest.mark.parametrize("place", [33, -12])
def test_a_png_chunk_that_states_gigabytes_is_never_allocated(place: int) -> None:
    for kind in (b"IDAT", b"tEXt"):
        lie = (0xDD000000).to_bytes(4, "big") + kind
        assert headers.read_png(PLAIN_PNG[:place] + lie + PLAIN_PNG[place:]).route is Route.PILLOW


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"pHYs", b"short"),
        chunk(b"fdAT", bytes(4) + PLAIN_PNG[41:-16]),
        chunk(b"zTXt", b"name\0\1packed"),
    ],
)
def test_chunks_that_come_too_late_are_for_pillow_to_judge(extra: bytes) -> None:
    refused_by_pillow(PLAIN_PNG[:-12] + extra + PLAIN_PNG[-12:])


@pytest.mark.parametrize(
    "other", [chunk(b"IHDR", PLAIN_PNG[16:24] + bytes([16, 6, 0, 0, 0])), chunk(b"te-t", b"")]
)
def test_a_second_header_and_names_of_other_than_letters_are_for_pillow_to_judge(other: bytes) -> None:
    refused_by_pillow(PLAIN_PNG[:33] + other + PLAIN_PNG[33:])


def refused_by_pillow(image: bytes) -> None:
    header = headers.read_png(memoryview(image))
    assert header.route is Route.PILLOW
    assert rescue(image, header, 224, LIMITS).pixels_SSC is None


def test_another_first_chunk_is_for_pillow_to_judge() -> None:
    text = chunk(b"tEXt", b"k\0v")
    header = headers.read_png(PLAIN_PNG[:8] + text + PLAIN_PNG[8:])
    assert (header.status, header.route) == (Status.OK, Route.PILLOW)
    assert rescue(PLAIN_PNG[:8] + text + PLAIN_PNG[8:], header, 224, LIMITS).pixels_SSC is not None
    without = PLAIN_PNG[:12] + b"iCCP" + PLAIN_PNG[16:]
    assert rescue(without, headers.read_png(without), 224, LIMITS).header.status is Status.UNDECODABLE


def test_without_an_end_chunk_pillow_judges() -> None:
    """All the pixels may be there, and Pillow then decodes them."""
    without = PLAIN_PNG[: PLAIN_PNG.index(b"IEND") - 4]
    header = headers.read_png(without)
    assert (header.status, header.route, header.width, header.height) == (Status.OK, Route.PILLOW, 40, 24)
    rescued = rescue(without, header, 224, LIMITS)
    assert rescued.header.status is Status.OK
    np.testing.assert_array_equal(rescued.pixels_SSC, decode_reference(PLAIN_PNG, 224, LIMITS).pixels_SSC)


def animated_png(**options: object) -> bytes:
    return encode_png(noise(), save_all=True, append_images=[noise().rotate(180)], **options)


@pytest.mark.parametrize("default_image", [False, True])
def test_animations_go_to_pillow(default_image: bool) -> None:
    """Their first image need not be of the animation: then Pillow opens it, and DALI the animation."""
    assert headers.read_png(animated_png(default_image=default_image)).route is Route.PILLOW


def test_an_animations_mark_is_one_before_the_image_only() -> None:
    mark = chunk(b"acTL", bytes(8))
    assert headers.read_png(PLAIN_PNG[:33] + chunk(b"tEXt", b"acTL") + PLAIN_PNG[33:]).route is Route.DALI
    assert headers.read_png(PLAIN_PNG[:-12] + mark + PLAIN_PNG[-12:]).route is Route.DALI
    many = chunk(b"tEXt", b"k\0v") * 5000
    assert headers.read_png(PLAIN_PNG[:33] + many + PLAIN_PNG[33:]).route is Route.PILLOW
    assert headers.read_png(PLAIN_PNG[:33] + many + mark + PLAIN_PNG[33:]).route is Route.PILLOW


@pytest.mark.parametrize("behind", [bytes(100), b"<html>" * 2000])
def test_what_follows_the_end_is_harmless(behind: bytes) -> None:
    assert headers.read_png(PLAIN_PNG + behind).status is Status.OK


def test_a_cut_at_any_byte_is_truncated() -> None:
    pixels_end = len(PLAIN_PNG) - 12 - 4 - 4  # before the checksums of image and chunk, and the end chunk
    whole = decode_reference(PLAIN_PNG, 224, LIMITS).pixels_SSC
    for end in range(8, len(PLAIN_PNG) - 12):
        cut = PLAIN_PNG[:end]
        header = headers.read_png(memoryview(cut))
        if header.route is Route.PILLOW:
            rescued = rescue(cut, header, 224, LIMITS)
            if end >= pixels_end - 4 and rescued.pixels_SSC is not None:
                np.testing.assert_array_equal(rescued.pixels_SSC, whole)
                continue
            header = rescued.header
        assert header.status is Status.TRUNCATED, end


def encode_webp(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return buffer.getvalue()


LOSSY, LOSSLESS = (
    encode_webp(noise()),
    encode_webp(noise(), lossless=True),
)
ICC = encode_webp(noise(), icc_profile=b"a profile")
TAGGED = encode_webp(noise(), exif=Image.Exif().tobytes() + bytes(8))


@pytest.mark.parametrize(
    ("image", "chunk", "route", "orientation"),
    [
        (LOSSY, b"VP8 ", Route.DALI, 1),
        (LOSSLESS, b"VP8L", Route.DALI, 1),
        (ICC, b"VP8X", Route.DALI, 1),
        (TAGGED, b"VP8X", Route.DALI, 0),
        (encode_webp(noise("RGBA")), b"VP8X", Route.PILLOW, 1),
        (encode_webp(noise("RGBA"), lossless=True), b"VP8L", Route.PILLOW, 1),
        (
            encode_webp(noise(), save_all=True, append_images=[noise().rotate(180)]),
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
def test_a_cut_at_any_byte_is_truncated_in_webp(image: bytes) -> None:
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


@pytest.mark.parametrize("behind", [bytes(100), b"<html>" * 90, LOSSLESS])
@pytest.mark.parametrize("image", [LOSSY, LOSSLESS, ICC, TAGGED])
def test_bytes_behind_the_picture_are_harmless_in_webp(image: bytes, behind: bytes) -> None:
    assert headers.read_webp(image + behind).route is Route.DALI
    alone = bytes(headers.picture_alone(image + behind))
    assert alone[12:16] in (b"VP8 ", b"VP8L")
    assert 8 + int.from_bytes(alone[4:8], "little") == len(alone)
    opened, whole = (Image.open(io.BytesIO(data)) for data in (alone, image))
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(whole))


def riff(*chunks: bytes) -> bytes:
    """A WebP of these chunks."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(
    "image",
    [
        riff(ICC[12:30], ICC[12:]),
        riff(LOSSY[12:], LOSSY[12:]),
        riff(LOSSY[12:], b"WHAT\4\0\0\0abcd"),
        riff(ICC[12:30], TAGGED[30:]).replace(b"EXIF", b"VP8 "),
        ICC[:20] + b"\xa0" + ICC[21:],
        ICC[:24] + b"\1" + ICC[25:],
    ],
)
def test_webps_of_odd_chunks_are_for_pillow_to_judge(image: bytes) -> None:
    assert headers.read_webp(image).route is Route.PILLOW
