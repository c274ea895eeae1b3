"""Hundreds of images, whole, odd and broken, each with the outcomes that are right for it."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageCms

from dali_aesthetic.types import Status
from tests.decode import rare_jpegs
from tests.decode.damage import (
    as_440,
    edited,
    flips,
    frame_at,
    height_times,
    with_footer,
    without_app14,
    without_huffman_tables,
)
from tests.decode.encoded import noise, photo, save
from tests.decode.pngs import chunk, png

OK = (Status.OK,)
TRUNCATED, UNDECODABLE, UNSUPPORTED = (Status.TRUNCATED,), (Status.UNDECODABLE,), (Status.UNSUPPORTED,)
TOO_LARGE, EMPTY, MISSING = (Status.TOO_LARGE,), (Status.EMPTY,), (Status.MISSING_IMAGE,)
BROKEN = (Status.TRUNCATED, Status.UNDECODABLE)
ANYTHING = (Status.OK, *BROKEN, Status.UNSUPPORTED, Status.TOO_LARGE)


@dataclass(frozen=True, slots=True)
class Case:
    """`image` may end with any of `statuses`. The pixels of a `damaged` one are anybody's guess."""

    name: str
    image: bytes | None
    statuses: tuple[Status, ...] = OK
    damaged: bool = False


@cache
def cases() -> tuple[Case, ...]:
    """All of them, always the same."""
    found = (*_jpegs(), *_broken_jpegs(), *_pngs(), *_webps(), *_others(), *_junk(), *bombs())
    assert len({case.name for case in found}) == len(found)
    return found


def shot() -> Image.Image:
    """A photo small enough for hundreds of variants, with sides that no block size divides."""
    return photo("coffee", 325, 251)


def _jpegs() -> Iterator[Case]:
    image, grey, cmyk = shot(), shot().convert("L"), noise(325, 251, "CMYK")
    for quality in (1, 50, 75, 95, 100):
        yield Case(f"jpeg quality {quality}", save(image, quality=quality))
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        for progressive in (False, True):
            jpeg = save(image, subsampling=subsampling, progressive=progressive)
            yield Case(f"jpeg {subsampling} progressive={progressive}", jpeg)
    yield Case("jpeg 4:4:0", as_440(save(image.resize((320, 240)), subsampling="4:2:2")))
    yield Case("jpeg optimised", save(image, optimize=True))
    yield Case("jpeg grey", save(grey))
    yield Case("jpeg grey progressive", save(grey, progressive=True))
    yield Case("jpeg rgb", save(image, keep_rgb=True))
    yield Case("jpeg restart rows", save(image, restart_marker_rows=1))
    yield Case("jpeg restart blocks", save(image, restart_marker_blocks=5))
    yield Case("jpeg cmyk", save(cmyk))
    yield Case("jpeg ycck", edited(save(cmyk), save(cmyk).index(b"Adobe") + 11, b"\x02"))
    yield Case("jpeg cmyk without adobe", without_app14(save(cmyk)))
    yield Case("jpeg arithmetic", rare_jpegs.ARITHMETIC)
    yield Case("jpeg arithmetic progressive", rare_jpegs.ARITHMETIC_PROGRESSIVE)
    yield Case("jpeg lossless", rare_jpegs.LOSSLESS)
    yield Case("jpeg 12 bits", edited(save(image), frame_at(save(image)) + 4, b"\x0c"), UNSUPPORTED)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    yield Case("jpeg lab profile", save(image, icc_profile=profile))
    yield Case("jpeg garbage profile", save(image, icc_profile=b"garbage" * 100))
    yield Case("jpeg comment", save(image, comment="a comment"))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield Case(f"jpeg orientation {orientation}", save(image, exif=exif))
    yield Case("jpeg corrupt exif", save(image, exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(50)))
    yield Case("jpeg large exif", save(image, exif=b"Exif\0\0" + bytes(65000)))
    yield Case("jpeg thumbnail", save(image, exif=b"Exif\0\0" + save(image.resize((60, 40)))))
    yield Case("jpeg two pictures", save(image, "MPO", save_all=True, append_images=[grey.convert("RGB")]))
    for width, height in ((1, 1), (8, 8), (31, 500), (32, 500), (700, 7), (33, 3000), (1500, 80), (224, 224)):
        yield Case(f"jpeg {width}x{height}", save(photo("coffee", width, height)))
    plain = save(image)
    yield Case("jpeg fill bytes", plain[:2] + b"\xff\xff\xff" + plain[2:])
    for name, behind in (("zeros", bytes(5000)), ("html", b"<html>" * 900), ("a jpeg", save(grey))):
        yield Case(f"jpeg and {name} behind it", plain + behind)


def _broken_jpegs() -> Iterator[Case]:
    kinds = {
        "baseline": save(shot()),
        "progressive": save(shot(), progressive=True),
        "grey": save(noise(90, 70, "L")),
    }
    for kind, jpeg in kinds.items():
        for share in (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
            yield Case(f"jpeg {kind} cut to {share}", jpeg[: int(len(jpeg) * share)], TRUNCATED)
        for missing in (1, 2, 100):
            yield Case(f"jpeg {kind} without its last {missing}", jpeg[:-missing], TRUNCATED)
        half = jpeg[: len(jpeg) // 2] + b"\xff\xd9"
        yield Case(f"jpeg {kind} cut in half and ended", half, (*OK, *BROKEN), damaged=True)
        for factor in (0.5, 2):
            yield Case(
                f"jpeg {kind} height times {factor}", height_times(jpeg, factor), ANYTHING, damaged=True
            )
        yield Case(f"jpeg {kind} height 0", height_times(jpeg, 0), UNDECODABLE)
        yield Case(f"jpeg {kind} without tables", without_huffman_tables(jpeg), UNDECODABLE)
        scan = jpeg.index(b"\xff\xda")
        for number in range(25):
            count = (1, 1, 5, 20, 100)[number % 5]
            yield Case(f"jpeg {kind} scan flips {number}", flips(jpeg, number, count, scan), ANYTHING, True)
        for number in range(25):
            flipped = flips(jpeg, number, 1, 2, scan)
            yield Case(f"jpeg {kind} header flip {number}", flipped, ANYTHING, damaged=True)
    jpeg = kinds["baseline"]
    yield Case("jpeg behind a byte", b"\0" + jpeg, UNDECODABLE)
    yield Case("jpeg start", jpeg[:2], TRUNCATED)
    yield Case("jpeg start and end", b"\xff\xd8\xff\xd9", TRUNCATED)
    yield Case("jpeg headers only", jpeg[: jpeg.index(b"\xff\xda")] + b"\xff\xd9\0\0", UNDECODABLE)
    for marker in (0xC3, 0xC5, 0xC7, 0xCB, 0xCF):
        changed = edited(jpeg, frame_at(jpeg), bytes([0xFF, marker]))
        yield Case(f"jpeg said to be SOF {marker:X}", changed, ANYTHING, damaged=True)


def _pngs() -> Iterator[Case]:
    image = shot()
    pixels = np.asarray(image)
    grey = pixels[..., :1]
    for mode in ("RGB", "L", "P", "1", "LA", "RGBA"):
        yield Case(f"png {mode}", save(image.convert(mode), "PNG"))
    yield Case("png alpha", save(noise(300, 200, "RGBA"), "PNG"))
    yield Case("png transparent palette", save(image.quantize(9), "PNG", transparency=3))
    yield Case("png transparent rgb", save(image, "PNG", transparency=(1, 2, 3)))
    yield Case("png transparent grey", save(image.convert("L"), "PNG", transparency=7))
    for bits in (1, 2, 4):
        yield Case(f"png grey {bits} bits", png(grey >> (8 - bits), colour_type=0, bit_depth=bits))
    for colour_type, samples in ((0, 1), (2, 3), (4, 2), (6, 4)):
        wide = noise(200, 100, "RGBA")
        many = np.asarray(wide)[..., :samples].astype(np.uint16) * 257
        yield Case(f"png 16 bits type {colour_type}", png(many, colour_type=colour_type, bit_depth=16))
    yield Case("png adam7", png(pixels, colour_type=2, adam7=True))
    yield Case("png adam7 grey", png(grey, colour_type=0, adam7=True))
    yield Case("png animated", save(image, "PNG", save_all=True, append_images=[image.rotate(180)]))
    exif = Image.Exif()
    exif[0x0112] = 6
    yield Case("png exif", save(image, "PNG", exif=exif))
    yield Case("png gamma", png(pixels, colour_type=2, chunks=chunk(b"gAMA", (22000).to_bytes(4, "big"))))
    plain = save(image, "PNG")
    yield Case("png and html behind it", plain + b"<html>" * 900)
    for share in (0.0005, 0.1, 0.5, 0.9):
        yield Case(f"png cut to {share}", plain[: max(8, int(len(plain) * share))], TRUNCATED)
    yield Case("png without IEND", plain[:-12])
    animation = save(image.rotate(90), "PNG", save_all=True, default_image=True, append_images=[image])
    yield Case("png animated, first image apart", animation)
    unpacked = zlib.compress(bytes(3 << 20))
    for kind, prefix in ((b"zTXt", b"k\0\0"), (b"iCCP", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0")):
        large = png(pixels, colour_type=2, chunks=chunk(kind, prefix + unpacked))
        yield Case(f"png 3 MB {kind.decode()}", large)
        paletted = save(image.quantize(16), "PNG")
        yield Case(
            f"png palette 3 MB {kind.decode()}",
            paletted[:33] + chunk(kind, prefix + unpacked) + paletted[33:],
        )
    yield Case("png width 0", png(pixels, colour_type=2, size=(0, 10)), UNDECODABLE)
    yield Case("png too high", png(pixels, colour_type=2, size=(325, 400)), (*OK, *BROKEN), damaged=True)
    yield Case("png without IDAT", plain[: plain.index(b"IDAT") - 4] + chunk(b"IEND", b""), BROKEN)
    for number in range(20):
        yield Case(f"png flip {number}", flips(plain, number, 1, 33, len(plain) - 12), ANYTHING, damaged=True)


def _webps() -> Iterator[Case]:
    image, alpha = shot(), noise(300, 200, "RGBA")
    kinds = {
        "lossy": save(image, "WEBP"),
        "lossless": save(image, "WEBP", lossless=True),
        "alpha": save(alpha, "WEBP"),
        "lossless alpha": save(alpha, "WEBP", lossless=True),
        "profile": save(image, "WEBP", icc_profile=b"a profile"),
        "exif": save(image, "WEBP", exif=Image.Exif().tobytes() + bytes(8)),
        "animated": save(image, "WEBP", save_all=True, append_images=[image.rotate(180)]),
    }
    for kind, webp in kinds.items():
        yield Case(f"webp {kind}", webp)
        for share in (0.02, 0.5, 0.99):
            yield Case(f"webp {kind} cut to {share}", webp[: max(13, int(len(webp) * share))], TRUNCATED)
        for number in range(6):
            yield Case(f"webp {kind} flip {number}", flips(webp, number, 1, 12), ANYTHING, damaged=True)


def _others() -> Iterator[Case]:
    """What Pillow decodes: whole, and cut in half."""
    image = shot()
    small = image.resize((64, 64))
    icon = save(small, "ICO", sizes=[(64, 64)])
    kinds = {
        "gif": save(image, "GIF"),
        "gif animated": save(image, "GIF", save_all=True, append_images=[image.rotate(180)]),
        "gif transparent": save(image.quantize(16), "GIF", transparency=2),
        "avif": save(image, "AVIF"),
        "avif alpha": save(noise(100, 100, "RGBA"), "AVIF"),
        "tga": with_footer(save(image, "TGA")),
        "tga without footer": with_footer(save(image, "TGA"))[:-26],
        "pnm plain rgb": plain_pnm(3, noise(30, 20)),
        "pnm plain grey": plain_pnm(2, noise(30, 20, "L")),
        "pnm plain 1": plain_pnm(1, noise(30, 20, "1")),
        "tga compressed": with_footer(save(image, "TGA", compression="tga_rle")),
        "tga grey": with_footer(save(image.convert("L"), "TGA")),
        "ico png": icon,
        "ico bmp": save(small, "ICO", sizes=[(64, 64)], bitmap_format="bmp"),
        "bmp": save(image, "BMP"),
        "bmp grey": save(image.convert("L"), "BMP"),
        "bmp palette": save(image.quantize(16), "BMP"),
        "bmp 1": save(image.convert("1"), "BMP"),
        "pnm rgb": save(image, "PPM"),
        "pnm grey": save(image.convert("L"), "PPM"),
        "pnm 1": save(image.convert("1"), "PPM"),
        "jpeg2000": save(image, "JPEG2000"),
        "jpeg2000 lossy": save(image, "JPEG2000", quality_layers=[20]),
        "jpeg2000 codestream": save(image, "JPEG2000", no_jp2=True),
        "tiff": save(image, "TIFF"),
        "tiff cmyk": save(image.convert("CMYK"), "TIFF"),
        "tiff rgba": save(noise(90, 60, "RGBA"), "TIFF"),
        "tiff 16 bits": save(noise(90, 60, "I;16"), "TIFF"),
        "tiff float": save(image.convert("F"), "TIFF"),
        "tiff pages": save(image, "TIFF", save_all=True, append_images=[image.rotate(180)]),
        "tiff big": save(image, "TIFF", big_tiff=True),
        "tiff group4": save(image.convert("1"), "TIFF", compression="group4"),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        kinds[f"tiff {compression}"] = save(image, "TIFF", compression=compression)
    for kind, data in kinds.items():
        yield Case(kind, data)
        yield Case(f"{kind} cut in half", data[: len(data) // 2], ANYTHING, damaged=True)


def plain_pnm(kind: int, image: Image.Image) -> bytes:
    """A PNM in decimal digits: P1 (bits), P2 (grey), P3 (RGB)."""
    digits = " ".join(str(int(value)) for value in np.asarray(image).ravel())
    depth = "" if kind == 1 else "255\n"
    return f"P{kind}\n{image.width} {image.height}\n{depth}{digits}\n".encode()


def _junk() -> Iterator[Case]:
    yield Case("nothing", b"", EMPTY)
    yield Case("no image", None, MISSING)
    random_bytes = random.Random(0).randbytes
    undecodable = {
        "one byte": b"\xff",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "json": b'{"error": "not found"}',
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "zeros": bytes(10_000),
        "text": b"The image you have requested is no longer here.\n" * 50,
        "plain pnm": b"P3 2 2 255 " + b"1 2 x " * 4,
        "gif magic": b"GIF89a" + bytes(300),
        "bmp magic": b"BM" + bytes(300),
        "tiff magic": b"II*\0" + random_bytes(300),
        "avif magic": b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + bytes(300),
        "jpeg2000 magic": b"\xff\x4f\xff\x51" + bytes(300),
        "ico magic": b"\0\0\1\0" + bytes(300),
        "postscript in a tga": b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n" + b"TRUEVISION-XFILE.\0",
    }
    for name, data in undecodable.items():
        yield Case(name, data, BROKEN)
    for number in range(10):
        data = bytes([0x20 + number]) + random.Random(number).randbytes(2000)
        yield Case(f"random bytes {number}", data, UNDECODABLE)
    unsupported = {
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "jpeg xl": b"\xff\x0a",
        "jpeg xl boxes": b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a",
        "psd": b"8BPS\0\1",
        "dds": save(shot(), "DDS"),
        "pcx": save(shot(), "PCX"),
        "qoi": b"qoif\0\0\1\0\0\0\1\0\3\0",
        "apple's png": save(shot(), "PNG")[:8] + chunk(b"CgBI", b"\x50\0\x20\2") + save(shot(), "PNG")[8:],
        "tiff big, big-endian": b"MM\0+\0\x08\0\0",
        "mp4": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2",
        "webm": b"\x1aE\xdf\xa3",
        "pdf": b"%PDF-1.7\n",
    }
    for name, data in unsupported.items():
        yield Case(name, data + bytes(200), UNSUPPORTED)


def bombs() -> Iterator[Case]:
    """Few bytes that claim many pixels."""
    for name, jpeg in (("baseline", save(shot())), ("progressive", save(shot(), progressive=True))):
        for side in (12_000, 20_000, 60_000):
            claim = side.to_bytes(2, "big") * 2
            yield Case(f"bomb jpeg {name} {side}", edited(jpeg, frame_at(jpeg) + 5, claim), TOO_LARGE)
    for side in (12_000, 60_000, 2**31 - 1):
        one_row = np.zeros((1, 8, 1), np.uint8)
        yield Case(f"bomb png {side}", png(one_row, colour_type=0, size=(side, side)), TOO_LARGE)
    webp = save(shot(), "WEBP")
    yield Case("bomb webp", edited(webp, 26, (16_383).to_bytes(2, "little") * 2), TOO_LARGE)
    gif = save(shot(), "GIF")
    yield Case("bomb gif", edited(gif, 6, (60_000).to_bytes(2, "little") * 2), TOO_LARGE)
    yield Case("bomb gif flat", save(Image.new("L", (5000, 4000)), "GIF"), TOO_LARGE)
    bmp = save(shot(), "BMP")
    yield Case("bomb bmp", edited(bmp, 18, (60_000).to_bytes(4, "little") * 2), TOO_LARGE)
    yield Case("bomb pnm", b"P6 60000 60000 255 " + bytes(1000), TOO_LARGE)
    tiff = save(Image.new("1", (5000, 4000)), "TIFF", compression="group4")
    yield Case("bomb tiff", tiff, TOO_LARGE)
    tga = with_footer(edited(save(shot(), "TGA"), 12, (60_000).to_bytes(2, "little") * 2))
    yield Case("bomb tga", tga, TOO_LARGE)
    stream = save(shot(), "JPEG2000", no_jp2=True)
    claim = (60_000).to_bytes(4, "big") * 2
    yield Case("bomb jpeg2000", edited(edited(stream, 8, claim), 24, claim), TOO_LARGE)
    tiny_tiles = edited(edited(stream, 8, (1200).to_bytes(4, "big") * 2), 24, (5).to_bytes(4, "big") * 2)
    yield Case("bomb jpeg2000 tiles", tiny_tiles, TOO_LARGE)
    icon = save(shot().resize((64, 64)), "ICO", sizes=[(64, 64)])
    header = icon.index(b"IHDR")
    claim = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + icon[header + 12 : header + 17]
    yield Case("bomb ico", edited(icon, header, claim + zlib.crc32(claim).to_bytes(4, "big")), TOO_LARGE)
    avif = save(shot(), "AVIF")
    claim = (60_000).to_bytes(4, "big") * 2
    yield Case("bomb avif", edited(avif, avif.index(b"ispe") + 8, claim), (*TOO_LARGE, *BROKEN))
