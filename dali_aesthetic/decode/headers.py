"""The header check: format, size and obvious damage of an image from its bytes, without decoding.

It takes a few microseconds an image, chooses the decoder (`Route`) and stops nearly all bad input before
DALI sees it. An image that raises in DALI costs its whole chunk a second decode, and the GPU decoder accepts
truncated JPEGs silently, so the check also looks for the end marker. The format comes from magic bytes, never
from the file's extension. PNG: W3C PNG, sections 5 and 11. WebP: RFC 9649."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from zlib import crc32

from dali_aesthetic.decode import jpeg
from dali_aesthetic.decode.jpeg import UNCLEAR, UPRIGHT, refused
from dali_aesthetic.types import Buffer, ImageHeader, Route, Status

GIANT_PIXELS = 32_000_000
"""Larger images go to Pillow, one at a time, because they would overflow DALI's batch buffers."""
TINY_SIDE = 32
"""Images with a shorter side below this go to Pillow: the two resamplers differ at the border, which is a
large share of an image that is magnified this much."""
BOMB_PIXELS = 16_000_000
"""The ratio of pixels to bytes is checked only above this: in a smaller image a high ratio is harmless."""

_PILLOW_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    *((magic, "tiff") for magic in (b"II*\x00", b"MM\x00*", b"II+\x00")),
    (b"\x00\x00\x00\x0cjP  ", "jpeg2000"),
    (b"\xff\x4f\xff\x51", "jpeg2000"),
    (b"\x00\x00\x01\x00", "ico"),
    *((b"P%d" % kind, "pnm") for kind in range(1, 7)),
)
_KNOWN_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\x0a", "jpegxl"),
    (b"\x00\x00\x00\x0cJXL ", "jpegxl"),
    (b"8BPS", "psd"),
    (b"MM\x00+", "big-endian BigTIFF"),  # which Pillow takes for a small TIFF
    (b"DDS ", "dds"),
    (b"qoif", "qoi"),
    (b"\x76\x2f\x31\x01", "exr"),
    (b"II\xbc\x01", "jpegxr"),
    (b"\x00\x00\x02\x00\x01\x00", "cur"),
    (b"icns", "icns"),
    *((b"\x0a%c\x01" % version, "pcx") for version in (0, 2, 3, 4, 5)),
    (b"%PDF", "pdf"),
    (b"\x1aE\xdf\xa3", "video"),
)
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_TGA_FOOTER = b"TRUEVISION-XFILE.\x00"
_TGA_KINDS, _TGA_DEPTHS = frozenset((1, 2, 3, 9, 10, 11)), frozenset((8, 16, 24, 32))
_PNG_GRAY, _PNG_RGB = 0, 2
_EARLY_CHUNKS = frozenset(
    (b"IHDR", b"PLTE", b"tRNS", b"fcTL", b"fdAT", b"cHRM", b"gAMA", b"pHYs", b"sRGB", b"iCCP")
)
"""Chunks on some of which Pillow fails behind the image data; libpng passes over them."""
_OTHER_IMAGES = frozenset((b"IHDR", b"acTL", b"fcTL", b"fdAT"))
"""Chunks before the image data that make Pillow read another size or another image."""
_PACKED = frozenset((b"iCCP", b"zTXt"))
"""Chunks of a name, its end 0, the method 0 and packed data (PNG, 11.3.2.3 and 11.3.3.3)."""
_PNG_FEWEST = {b"tRNS": 6, b"pHYs": 9, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1}
"""Bytes that Pillow wants in these chunks."""
_MOST_CHUNKS = 4096
"""Chunks of a PNG walked at most. Encoders write image data in chunks of 8 KiB or more."""
_WEBP_CHUNKS = frozenset((b"VP8X", b"ICCP", b"VP8 ", b"VP8L", b"EXIF", b"XMP "))
_WEBP_PROFILE, _WEBP_EXIF, _WEBP_XMP = 0x20, 0x08, 0x04


_ADVICE = "{} is not supported: convert it to JPEG, PNG or WebP"
_chunk = struct.Struct(">I4s").unpack_from
_OK = Status.OK  # looking up a member of an enum takes Python 3.11 as long as a call


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on what is decoded at all; see `config.DecodeConfig` for their meaning."""

    max_pixels: int = 200_000_000
    max_pixels_per_byte: int = 1000

    def objection(self, width: int, height: int, num_bytes: int) -> str:
        """Why an image of this size in this many bytes is too large, or an empty string."""
        pixels = width * height
        if pixels > self.max_pixels:
            return f"{width}x{height}: {pixels:,} pixels, the limit is {self.max_pixels:,}"
        if pixels > BOMB_PIXELS and pixels > self.max_pixels_per_byte * num_bytes:
            limit = self.max_pixels_per_byte
            return (
                f"{width}x{height}: {pixels:,} pixels in {num_bytes:,} bytes, the limit is {limit:,} a byte"
            )
        return ""


def probe(image: Buffer, limits: Limits) -> ImageHeader:
    """The image's header, with the route it takes or the reason why it takes none. Never raises."""
    data = bytes(image[:32])
    if not data:
        return refused("", Status.EMPTY, "the image has no bytes")
    if data.startswith(b"\xff\xd8"):
        header = jpeg.read(image)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        header = read_png(image)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = read_webp(image)
    else:
        header = _other(image, data)
    return _within(limits, header, len(image)) if header.status is _OK else header


def read_png(image: Buffer) -> ImageHeader:
    """The header of a PNG (bytes that begin with its signature), its route, or what is wrong with it."""
    start = bytes(image[:33])
    if len(start) < 33:
        return refused("png", Status.TRUNCATED, "PNG: ends within its header")
    if start[12:16] == b"CgBI":
        return refused("cgbi", Status.UNSUPPORTED, _ADVICE.format("cgbi (Apple's form of PNG)"))
    if start[12:16] != b"IHDR":  # Pillow takes chunks in any order
        return ImageHeader(format="png", width=0, height=0, route=Route.PILLOW, orientation=UNCLEAR)
    width, height = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
    if not (width and height):
        return refused("png", Status.UNDECODABLE, f"PNG: a size of {width}x{height}")
    ordered = in_order(image)
    if not ordered and b"IEND" not in bytes(image) and b"IDAT" not in bytes(image):
        return refused("png", Status.TRUNCATED, "PNG: ends before its image data", width, height)
    # The reference resizes in the file's own mode and converts last: palettes (nearest neighbour),
    # alpha, 1 bit and 16 bits come out differently from DALI, so Pillow decodes those. So it does a PNG
    # without its end, which may be whole all the same, an animation, whose first image may be another, and
    # one with damage beside its image data, which the reference may refuse.
    bit_depth, colour_type = start[24], start[25]
    plain = colour_type in (_PNG_GRAY, _PNG_RGB) and bit_depth == 8 and ordered
    return ImageHeader(
        format="png",
        width=width,
        height=height,
        route=Route.DALI if plain else Route.PILLOW,
        orientation=UNCLEAR,  # eXIf and XMP may stand anywhere in the file
    )


def in_order(image: Buffer) -> bool:
    """Whether other decoders read a PNG's chunks as Pillow does: whole, up to IEND, and few enough to tell.

    OpenCV, which DALI uses, allocates what a chunk states. libpng only warns of chunks before the image data
    that are too short, packed by an unknown method or have a wrong sum.
    """
    position, behind = 33, False  # IHDR's own sum is checked by every decoder
    for _ in range(_MOST_CHUNKS):
        if position + 12 > len(image):
            return False
        length, kind = _chunk(image, position)
        end = position + 8 + length
        if end + 4 > len(image):
            return False
        if kind == b"IDAT":
            behind = True
        elif kind == b"IEND":
            return behind
        elif kind in _PACKED and not _method_is_0(bytes(image[position + 8 : min(end, position + 90)])):
            return False
        elif behind:
            if kind in _EARLY_CHUNKS:
                return False
        else:
            right = crc32(image[position + 4 : end]) == int.from_bytes(image[end : end + 4], "big")
            short = length < _PNG_FEWEST.get(kind, 0)
            if not right or short or kind in _OTHER_IMAGES or not kind.isalpha():
                return False
        position = end + 4
    return False


def image_data(png: Buffer) -> Buffer:
    """The packed image data of a PNG whose chunks are `in_order`: the first run of IDAT, as in Pillow."""
    position, parts = 33, list[Buffer]()
    while True:
        length, kind = _chunk(png, position)
        if kind == b"IDAT":
            parts.append(png[position + 8 : position + 8 + length])
        elif parts:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        position += 12 + length


def _method_is_0(packed: bytes) -> bool:
    return packed[packed.find(b"\0") + 1 :].startswith(b"\0")


def read_webp(image: Buffer) -> ImageHeader:
    """The header of a WebP (bytes that begin with RIFF....WEBP), its route, or what is wrong with it."""
    start = bytes(image[:30])
    if len(start) < 25:
        return refused("webp", Status.TRUNCATED, "WebP: ends within its header")
    size = _webp_size(start)
    if 8 + int.from_bytes(start[4:8], "little") > len(image):
        width, height, _ = size or (0, 0, False)
        return refused("webp", Status.TRUNCATED, "WebP: shorter than its RIFF size", width, height)
    if size is None:
        return refused("webp", Status.UNDECODABLE, f"WebP: its first chunk is {start[12:16]!r}, or damaged")
    width, height, plain = size
    if not (width and height):
        return refused("webp", Status.UNDECODABLE, f"WebP: a size of {width}x{height}")
    tagged = start[12:16] == b"VP8X" and start[20] & (_WEBP_EXIF | _WEBP_XMP)
    return ImageHeader(
        format="webp",
        width=width,
        height=height,
        route=Route.DALI if plain and _picture(image, width, height) else Route.PILLOW,
        orientation=UNCLEAR if tagged else UPRIGHT,
    )


def picture_alone(webp: Buffer) -> Buffer:
    """A WebP that goes to DALI, without what stands behind its picture.

    libwebp's plain decoder, which DALI uses, reads on there where the picture's data are too few.
    """
    start, end = _picture(webp) or (0, 0)
    if start == 12:
        return webp[:end]
    return b"RIFF" + (4 + end - start).to_bytes(4, "little") + b"WEBP" + bytes(webp[start:end])


def _picture(webp: Buffer, width: int = 0, height: int = 0) -> tuple[int, int] | None:
    """Where the one chunk of image data begins and ends in a WebP that states this size (0: any).

    None where other chunks than metadata are beside it, or sizes don't fit: then Pillow decides.
    """
    at, end, place = 12, 8 + int.from_bytes(webp[4:8], "little"), None
    wanted = set(_WEBP_CHUNKS)
    while at < end:
        head = bytes(webp[at : at + 18])
        kind, after = head[:4], at + 8 + (int.from_bytes(head[4:8], "little") + 1 & -2)
        if kind not in wanted or after > end:
            return None
        wanted.remove(kind)
        if kind in (b"VP8 ", b"VP8L"):
            size = _webp_size(bytes(12) + head)
            if size is None or (width and size[:2] != (width, height)):
                return None
            wanted -= {b"VP8X", b"ICCP", b"VP8 ", b"VP8L"}
            if at == 12:
                wanted.clear()
            place = at, after
        at = after
    return place


def _webp_size(start: bytes) -> tuple[int, int, bool] | None:
    """Width, height, and whether DALI decodes it as the reference does: without alpha, animation or flags
    that libwebp doesn't know."""
    chunk = start[12:16]
    if chunk == b"VP8 " and len(start) >= 30 and start[23:26] == b"\x9d\x01\x2a":
        width = int.from_bytes(start[26:28], "little") & 0x3FFF
        return width, int.from_bytes(start[28:30], "little") & 0x3FFF, True
    if chunk == b"VP8L" and start[20] == 0x2F:
        bits = int.from_bytes(start[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, not bits >> 28 & 1
    if chunk == b"VP8X" and len(start) >= 30:
        width = int.from_bytes(start[24:27], "little") + 1
        height = int.from_bytes(start[27:30], "little") + 1
        return width, height, not start[20] & ~(_WEBP_PROFILE | _WEBP_EXIF | _WEBP_XMP)
    return None


def _other(image: Buffer, data: bytes) -> ImageHeader:
    """Formats that are recognised by magic bytes alone: Pillow reads their size and applies the limits."""
    name = _pillow_format(image, data)
    if name:
        return ImageHeader(format=name, width=0, height=0, route=Route.PILLOW, orientation=UNCLEAR)
    if data[4:8] == b"ftyp":
        name = "heic" if _HEIC_BRANDS & _brands(image) else "video"
    else:
        name = _by_magic(data, _KNOWN_MAGIC)
    if name:
        return refused(name, Status.UNSUPPORTED, _ADVICE.format(name))
    if _may_be_tga(data):
        return ImageHeader(format="tga", width=0, height=0, route=Route.PILLOW, orientation=UNCLEAR)
    return refused("", Status.UNDECODABLE, f"no image format begins with {data[:12]!r}")


def _pillow_format(image: Buffer, data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return "avif" if _AVIF_BRANDS & _brands(image) else ""
    if name := _by_magic(data, _PILLOW_MAGIC):
        return name
    return "tga" if bytes(image[-18:]) == _TGA_FOOTER else ""


def _may_be_tga(data: bytes) -> bool:
    """Whether the 18 bytes of a TGA header are possible: the first version of the format has no magic."""
    if len(data) < 18 or data[1] > 1 or data[2] not in _TGA_KINDS or data[16] not in _TGA_DEPTHS:
        return False
    return any(data[12:14]) and any(data[14:16])


def _by_magic(data: bytes, table: tuple[tuple[bytes, str], ...]) -> str:
    return next((name for magic, name in table if data.startswith(magic)), "")


def _brands(image: Buffer) -> set[bytes]:
    """The brands that an ISO media file claims to follow: its own, then the compatible ones."""
    box = bytes(image[: min(256, int.from_bytes(image[:4], "big"))])
    return {box[8:12], *(box[i : i + 4] for i in range(16, len(box), 4))}


def _within(limits: Limits, header: ImageHeader, num_bytes: int) -> ImageHeader:
    width, height = header.width, header.height
    if message := limits.objection(width, height, num_bytes):
        return header._replace(route=Route.NOBODY, status=Status.TOO_LARGE, message=message)
    extreme = width < TINY_SIDE or height < TINY_SIDE or width * height > GIANT_PIXELS
    return header._replace(route=Route.PILLOW) if extreme and header.route is Route.DALI else header
