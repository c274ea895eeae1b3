"""The reference path: byte for byte open_clip's transform, and strict about what it opens."""

from __future__ import annotations

import io
import struct
import threading
import zlib

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from dali_aesthetic.decode import pillow
from dali_aesthetic.decode import pillow as module
from dali_aesthetic.decode.headers import Limits, probe
from dali_aesthetic.decode.pillow import TooManyPixels, decode_reference, rescue, square_pixels
from dali_aesthetic.types import ImageHeader, Route, Status
from tests.decode.damage import without_huffman_tables
from tests.decode.encoded import mean_error, noise, photo, save
from tests.decode.pngs import chunk

LIMITS = Limits()
TRANSFORM = open_clip.image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))


def open_clips(image: Image.Image) -> npt.NDArray[np.uint8]:
    """open_clip's own pixels before it normalises them."""
    scaled = TRANSFORM(image).permute(1, 2, 0).numpy() * 255
    assert np.abs(scaled - scaled.round()).max() < 1e-3
    return scaled.round().astype(np.uint8)


MODES = [
    ("RGB", "PNG"),
    ("L", "PNG"),
    ("P", "PNG"),
    ("1", "PNG"),
    ("LA", "PNG"),
    ("RGBA", "PNG"),
    ("I;16", "PNG"),
    ("I;16", "TIFF"),
    ("CMYK", "JPEG"),
    ("CMYK", "TIFF"),
    ("YCbCr", "JPEG"),
    ("RGB", "JPEG"),
    ("L", "JPEG"),
    ("P", "GIF"),
    ("RGBA", "WEBP"),
    ("RGBA", "AVIF"),
    ("RGB", "BMP"),
    ("F", "TIFF"),
    ("LAB", "TIFF"),
]


@pytest.mark.parametrize(("mode", "format"), MODES)
@pytest.mark.parametrize("size", [(300, 227), (90, 400), (224, 224)])
def test_pixels_are_open_clips_in_every_mode(mode: str, format: str, size: tuple[int, int]) -> None:
    image = noise(*size, "RGB").convert("RGB") if mode == "LAB" else noise(*size, mode)
    if mode == "LAB":
        image = Image.merge("LAB", image.split())
    encoded = save(image, format)
    decoded = decode_reference(encoded, 224, LIMITS)
    np.testing.assert_array_equal(decoded.pixels_SSC, open_clips(Image.open(io.BytesIO(encoded))))
    assert (decoded.width, decoded.height) == size


def test_the_first_frame_counts() -> None:
    first, second = noise(60, 60), ImageOps.invert(noise(60, 60))
    for format in ("GIF", "TIFF", "WEBP", "AVIF", "PNG"):
        encoded = save(first, format, save_all=True, append_images=[second])
        alone = open_clips(Image.open(io.BytesIO(encoded)))
        np.testing.assert_array_equal(decode_reference(encoded, 224, LIMITS).pixels_SSC, alone)


@pytest.mark.parametrize("size", [(17 * 30, 30), (30, 3000), (65000, 2)])
def test_extreme_ratios_resample_the_crop_only(size: tuple[int, int]) -> None:
    image = photo(width=size[0], height=size[1])
    ours = decode_reference(save(image, "PNG"), 224, LIMITS).pixels_SSC
    if max(size) < 10_000:  # beyond that the reference allocates gigabytes
        assert mean_error(ours, open_clips(image)) < 0.1
    assert ours.shape == (224, 224, 3)


def test_giant_jpegs_are_decoded_at_a_reduced_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = save(photo(width=2000, height=1500), quality=95)
    exact = decode_reference(encoded, 224, LIMITS).pixels_SSC
    monkeypatch.setattr(pillow, "GIANT_PIXELS", 1_000_000)
    drafted = decode_reference(encoded, 224, LIMITS)
    assert (drafted.width, drafted.height) == (2000, 1500)
    assert 0 < mean_error(drafted.pixels_SSC, exact) < 1.5


def test_giants_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow, "GIANT_PIXELS", 100)
    inside, most = 0, 0
    real, lock = pillow.square_pixels, threading.Lock()

    def counted(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        pixels = real(image, size)
        with lock:
            inside -= 1
        return pixels

    monkeypatch.setattr(pillow, "square_pixels", counted)
    encoded = save(photo(), "PNG")
    threads = [threading.Thread(target=decode_reference, args=(encoded, 224, LIMITS)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "PPM", "PNG", "AVIF"])
def test_sizes_beyond_the_limits_raise_before_decoding(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    encoded = save(noise(), format)
    with pytest.raises(TooManyPixels, match=r"960 pixels.* limit (is|of) 9[56]"):
        decode_reference(encoded, 224, Limits(max_pixels=959))


def test_the_image_inside_an_icon_is_held_to_the_limits_too() -> None:
    """Pillow decodes an icon's image while it opens the file, whatever the directory says of its size."""
    icon = save(noise(64, 64), "ICO", sizes=[(64, 64)])
    header = icon.index(b"IHDR")
    content = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + icon[header + 12 : header + 17]
    checksum = zlib.crc32(content).to_bytes(4, "big")
    bomb = icon[:header] + content + checksum + icon[header + 21 :]
    with pytest.raises(TooManyPixels, match="900000000 pixels"):
        decode_reference(bomb, 224, LIMITS)


def test_many_pixels_a_byte_raise_in_formats_whose_size_only_pillow_reads() -> None:
    flat = save(Image.new("L", (5000, 4000)), "GIF")
    with pytest.raises(TooManyPixels, match=r"5000x4000: 20,000,000 pixels in .* a byte"):
        decode_reference(flat, 224, Limits(max_pixels_per_byte=10))


def tiled_tiff(tile: int) -> bytes:
    """A TIFF of 64 x 64 pixels in one tile of `tile` x `tile` zeros, deflated."""
    data = zlib.compress(bytes(tile * tile * 3), 9)
    shorts = [(256, 64), (257, 64), (258, None), (259, 8), (262, 2), (277, 3), (284, 1)]
    longs = [(322, tile), (323, tile), (324, None), (325, len(data))]
    behind = 8 + 2 + 12 * (len(shorts) + len(longs)) + 4
    directory = struct.pack("<H", len(shorts) + len(longs))
    for tag, short in shorts:
        count, value = (3, behind) if short is None else (1, short)
        directory += struct.pack("<HHII", tag, 3, count, value)
    for tag, long in longs:
        directory += struct.pack("<HHII", tag, 4, 1, behind + 6 if long is None else long)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + struct.pack("<3H", 8, 8, 8) + data


def test_a_tiffs_tiles_are_held_to_the_limits_since_they_are_decoded_whole() -> None:
    assert decode_reference(tiled_tiff(64), 224, LIMITS).width == 64
    bomb = tiled_tiff(2000)
    assert decode_reference(bomb, 224, Limits(max_pixels=4_000_000)).width == 64
    header = probe(bomb, LIMITS)
    rescued = rescue(bomb, header, 224, Limits(max_pixels=3_999_999))
    assert rescued.header.status is Status.TOO_LARGE
    assert "2000x2000" in rescued.header.message


@pytest.mark.parametrize(
    ("kind", "prefix"), [(b"zTXt", b"k\0\0"), (b"iCCP", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0")]
)
def test_a_large_text_or_profile_costs_no_image_and_is_bounded_all_the_same(
    kind: bytes, prefix: bytes
) -> None:
    image = save(noise().quantize(16), "PNG")
    before = PngImagePlugin.MAX_TEXT_CHUNK

    def with_text(num_bytes: int) -> bytes:
        return image[:33] + chunk(kind, prefix + zlib.compress(bytes(num_bytes))) + image[33:]

    pixels = decode_reference(with_text(3 << 20), 224, LIMITS).pixels_SSC
    np.testing.assert_array_equal(pixels, decode_reference(image, 224, LIMITS).pixels_SSC)
    with pytest.raises(ValueError, match="too large"):
        decode_reference(with_text(17 << 20), 224, LIMITS)
    assert before == PngImagePlugin.MAX_TEXT_CHUNK


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
def test_a_cut_image_raises_even_where_a_program_allowed_it(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    encoded = save(photo(), format)
    with pytest.raises(Exception, match=r".+"):
        decode_reference(encoded[: len(encoded) // 2], 224, LIMITS)
    assert ImageFile.LOAD_TRUNCATED_IMAGES, "the program's own setting is back"


def test_a_programs_own_pixel_limit_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = save(photo(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    decode_reference(encoded, 224, LIMITS)
    with pytest.raises(TooManyPixels):
        decode_reference(encoded, 224, Limits(max_pixels=1000))
    assert Image.MAX_IMAGE_PIXELS == 100


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) print\n%%EOF\n"


@pytest.mark.parametrize("format", ["tga", "bmp", "jpeg", ""])
def test_other_plugins_of_pillow_are_never_tried(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PostScript file with a TGA footer passes the header check, and Pillow would call Ghostscript."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript was called"))
    data = POSTSCRIPT + bytes(8) + b"TRUEVISION-XFILE.\x00"
    with pytest.raises(Exception, match=r".+"):
        decode_reference(data, 224, LIMITS, format=format)


def tagged(orientation: int, format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(photo("coffee", 320, 200), format, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_the_orientation_is_applied_on_demand_only(orientation: int, format: str) -> None:
    encoded = tagged(orientation, format)
    opened = Image.open(io.BytesIO(encoded))
    stored = decode_reference(encoded, 224, LIMITS)
    upright = decode_reference(encoded, 224, LIMITS, apply_exif=True)
    np.testing.assert_array_equal(stored.pixels_SSC, open_clips(opened))
    np.testing.assert_array_equal(upright.pixels_SSC, square_pixels(ImageOps.exif_transpose(opened), 224))
    assert (orientation == 1) == np.array_equal(stored.pixels_SSC, upright.pixels_SSC)


def test_damaged_exif_leaves_the_image_as_it_is() -> None:
    encoded = save(photo(), "JPEG", exif=b"Exif\0\0no directory at all")
    upright = decode_reference(encoded, 224, LIMITS, apply_exif=True).pixels_SSC
    np.testing.assert_array_equal(upright, decode_reference(encoded, 224, LIMITS).pixels_SSC)


def header_of(image: bytes) -> ImageHeader:
    return probe(image, LIMITS)


def test_what_decodes_has_the_size_that_pillow_found() -> None:
    gif = save(noise(60, 30), "GIF")
    assert header_of(gif).width == 0
    rescued = rescue(gif, header_of(gif), 224, LIMITS)
    assert rescued.header.status is Status.OK
    assert (rescued.header.width, rescued.header.height) == (60, 30)
    assert rescued.header.route is Route.PILLOW
    np.testing.assert_array_equal(rescued.pixels_SSC, decode_reference(gif, 224, LIMITS).pixels_SSC)


GIF = save(photo(), "GIF")
JPEG = save(photo())


@pytest.mark.parametrize(
    ("image", "limits", "status", "message"),
    [
        (without_huffman_tables(JPEG), LIMITS, Status.UNDECODABLE, "jpeg: "),
        (GIF[: len(GIF) // 2], LIMITS, Status.TRUNCATED, "gif: OSError: image file is truncated"),
        (b"GIF8" + bytes(50), LIMITS, Status.UNDECODABLE, "gif: Pillow finds no image in these bytes"),
        (
            GIF,
            Limits(max_pixels=1000),
            Status.TOO_LARGE,
            "Image size (262144 pixels) exceeds limit of 1000 p",
        ),
    ],
)
def test_what_fails_has_a_status_and_a_reason(
    image: bytes, limits: Limits, status: Status, message: str
) -> None:
    rescued = rescue(image, header_of(image), 224, limits)
    assert (rescued.header.status, rescued.header.route) == (status, Route.NOBODY)
    assert rescued.header.message.startswith(message)
    assert rescued.pixels_SSC is None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("no room"), Status.TOO_LARGE),
        (ValueError("Truncated File Read"), Status.TRUNCATED),
        (RecursionError("deep"), Status.UNDECODABLE),
        (Image.DecompressionBombError("big"), Status.UNDECODABLE),
        (ZeroDivisionError("x" * 10_000), Status.UNDECODABLE),
    ],
)
def test_whatever_is_raised_becomes_a_status(
    error: Exception, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(module, "decode_reference", failing)
    rescued = rescue(GIF, header_of(GIF), 224, LIMITS)
    assert rescued.header.status is status
    assert 0 < len(rescued.header.message) <= 500


def test_the_orientation_is_applied_where_asked() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = save(photo("coffee"), "PNG", exif=exif)
    turned = rescue(image, header_of(image), 224, LIMITS, apply_exif=True)
    expected = decode_reference(image, 224, LIMITS, apply_exif=True).pixels_SSC
    np.testing.assert_array_equal(turned.pixels_SSC, expected)
    assert (turned.header.width, turned.header.height) == (600, 400)
