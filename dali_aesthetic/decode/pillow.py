"""The reference decoder and transform through Pillow, one image at a time.

It decodes what DALI can't, what the reference treats differently (palettes, alpha, 16 bits, GIF, AVIF, TIFF,
...) and the samples that DALI refused. Tests compare the DALI path with it."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    Jpeg2KImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from dali_aesthetic.decode import codecs
from dali_aesthetic.decode.geometry import Geometry
from dali_aesthetic.decode.headers import GIANT_PIXELS, Limits
from dali_aesthetic.types import Buffer, ImageHeader, Route, Status

_PLUGINS = {
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tiff": "TIFF",
    "jpeg2000": "JPEG2000",
    "ico": "ICO",
    "pnm": "PPM",
    "avif": "AVIF",
    "tga": "TGA",
}
"""Pillow's plugin for each format of the header check. No other may be tried: Pillow alone would recognise a
PostScript file with a TGA footer as PostScript and run Ghostscript on it."""
_MAX_RESIZED_ASPECT = 16
"""Beyond this aspect ratio only the crop's region is resampled: the long side is never allocated."""
_J2K_TILE_PIXELS = 2700
"""Pixels of three bytes that take as much memory as OpenJPEG's record of a tile."""
_TILE_SIDES = (322, 323)
"""TIFF's tags TileWidth and TileLength."""
_MOST_TEXT = 16 << 20
"""Bytes that a text or the colour profile of a PNG may unpack to. Pillow's own bound is 1 MiB."""
_one_giant = threading.Lock()
"""Held while a giant is decoded, so that memory is bounded by one of them, not by the number of threads."""

# Pillow's own guard warns at half of our limit; ours reports the image in its row.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class TooManyPixels(ValueError):
    """The decoded header shows more pixels than the limits allow."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """`pixels_SSC` is uint8 RGB [S, S, 3]; width and height are the source's. `whole_PPC` is the whole image,
    stretched, where it was asked for."""

    pixels_SSC: npt.NDArray[np.uint8]
    width: int
    height: int
    whole_PPC: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Rescued:
    """A header as decoding left it, and the pixels where there are any, as those of `Decoded`."""

    header: ImageHeader
    pixels_SSC: npt.NDArray[np.uint8] | None
    whole_PPC: npt.NDArray[np.uint8] | None = None


def rescue(
    image: Buffer,
    header: ImageHeader,
    image_size: int,
    limits: Limits,
    apply_exif: bool = False,
    whole_side: int = 0,
) -> Rescued:
    """Decode by Pillow. Never raises for what the bytes are: the failure becomes the header's status."""
    try:
        options: dict[str, Any] = {"apply_exif": apply_exif, "whole_side": whole_side}
        decoded = decode_reference(image, image_size, limits, format=header.format, **options)
    except TooManyPixels as error:
        return _failed(header, Status.TOO_LARGE, str(error))
    except UnidentifiedImageError:
        return _failed(header, Status.UNDECODABLE, f"{header.format}: Pillow finds no image in these bytes")
    except MemoryError as error:
        return _failed(header, Status.TOO_LARGE, f"{header.format}: out of memory ({error})")
    except Exception as error:  # Pillow's plugins raise nearly every type for damaged data
        status = Status.TRUNCATED if "truncated" in str(error).lower() else Status.UNDECODABLE
        return _failed(header, status, f"{header.format}: {type(error).__name__}: {error}")
    found = header._replace(width=decoded.width, height=decoded.height, route=Route.PILLOW)
    return Rescued(found, decoded.pixels_SSC, decoded.whole_PPC)


def _failed(header: ImageHeader, status: Status, message: str) -> Rescued:
    return Rescued(header._replace(route=Route.NOBODY, status=status, message=message[:500]), None)


def decode_reference(
    data: Buffer,
    image_size: int,
    limits: Limits,
    *,
    format: str = "",
    apply_exif: bool = False,
    whole_side: int = 0,
) -> Decoded:
    """The image as open_clip's own transform gives it, before normalisation.

    As the reference does: the first frame, in the file's own mode, bicubic resize, centre crop, then to
    RGB; colour profiles are ignored, and EXIF orientation unless `apply_exif`. `format` is the header
    check's, or empty for any that it knows. With `whole_side` the whole image is there too, stretched to that
    side. Raises `TooManyPixels` beyond `limits`, and whatever Pillow
    raises (many types) for data that it can't decode.
    """
    with _strict.within(limits), Image.open(io.BytesIO(data), formats=_plugins(format)) as image:
        width, height = image.size
        if message := limits.objection(*_decoded_size(image, data), len(data)):
            raise TooManyPixels(message)
        giant = width * height > GIANT_PIXELS
        if giant:
            # JPEGs only: decoded at a reduced scale, never below twice the encoder's input.
            image.draft(None, (2 * image_size, 2 * image_size))
        with _one_giant if giant else contextlib.nullcontext():
            if apply_exif:
                source = turned_upright(image)
            else:
                pixels = None if giant else _by_codec(image, data)
                source = image if pixels is None else Image.fromarray(pixels)
            pixels_SSC = square_pixels(source, image_size)
            whole_PPC = _stretched(source, whole_side) if whole_side else None
            return Decoded(pixels_SSC, width, height, whole_PPC)


def _by_codec(image: Image.Image, data: Buffer) -> npt.NDArray[np.uint8] | None:
    """The opened image's pixels by the extra `codecs`; None where Pillow is to decode."""
    if isinstance(image, AvifImagePlugin.AvifImageFile):
        channels = len(image.getbands())
        return codecs.decode_avif(data, *image.size, channels) if image.n_frames == 1 else None
    return codecs.decode_rgba(data, *image.size)


def _decoded_size(image: Image.Image, data: Buffer) -> tuple[int, int]:
    """The image's width and height, rounded up to the tiles that a TIFF is decoded in; of a JPEG 2000 as many
    pixels as its tiles are worth, for each of which OpenJPEG allocates 8 KB at once."""
    if isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile):
        width, height = image.size
        return max(width, -(-_J2K_TILE_PIXELS * _j2k_tiles(bytes(data)) // height)), height
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.size
    tile = [image.tag_v2.get(tag) for tag in _TILE_SIDES]
    width, height = (
        -(-side // step) * step if isinstance(step, int) and step > 0 else side
        for side, step in zip(image.size, tile, strict=True)
    )
    return width, height


def _j2k_tiles(data: bytes) -> int:
    """The tiles of a JPEG 2000's codestream (T.800, A.5.1)."""
    at = data.find(b"\xff\x4f\xff\x51") + 8
    if len(data) < at + 32:
        return 0
    fields: tuple[int, ...] = struct.unpack_from(">8I", data, at)
    width, height, _, _, across, down, left, top = fields
    if not (across and down):
        return 0
    return -(-(width - left) // across) * -(-(height - top) // down)


def square_pixels(image: Image.Image, image_size: int) -> npt.NDArray[np.uint8]:
    """The reference's transform of an opened image: uint8 RGB [image_size, image_size, 3]."""
    return np.asarray(_square(image, image_size).convert("RGB"))


def _stretched(image: Image.Image, side: int) -> npt.NDArray[np.uint8]:
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))


@cache
def _plugins(format: str) -> tuple[str, ...]:
    Image.init()
    wanted = [_PLUGINS[format]] if format else _PLUGINS.values()
    return tuple(plugin for plugin in wanted if plugin in Image.OPEN)


class _Strict:
    """Pillow's process-wide switches as they must be while anything is decoded here, and as they were after.

    Truncated files must raise. Pillow's own guard (it raises above twice its number) is set to our limit:
    it also sees the images inside an icon, which are decoded while the file is being opened. A PNG's text
    is bounded, but not so tightly that a large profile costs the image.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before: tuple[bool, int | None, int] = (False, None, 0)

    @contextlib.contextmanager
    def within(self, limits: Limits) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._before = (
                    ImageFile.LOAD_TRUNCATED_IMAGES,
                    Image.MAX_IMAGE_PIXELS,
                    PngImagePlugin.MAX_TEXT_CHUNK,
                )
            self._inside += 1
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            Image.MAX_IMAGE_PIXELS = -(-limits.max_pixels // 2)
            PngImagePlugin.MAX_TEXT_CHUNK = _MOST_TEXT
        try:
            yield
        except Image.DecompressionBombError as error:
            raise TooManyPixels(str(error).partition(",")[0]) from None
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    (
                        ImageFile.LOAD_TRUNCATED_IMAGES,
                        Image.MAX_IMAGE_PIXELS,
                        PngImagePlugin.MAX_TEXT_CHUNK,
                    ) = self._before


_strict = _Strict()


def turned_upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says, if it has one that can be read."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF raises nearly every type, and says nothing about the pixels
        return image


def _square(image: Image.Image, size: int) -> Image.Image:
    image.load()
    width, height = image.size
    geometry = Geometry.of(width, height, size)
    if max(width, height) > _MAX_RESIZED_ASPECT * min(width, height):
        box = geometry.source_box(width, height)
        return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    resized = image.resize((geometry.resized_width, geometry.resized_height), Image.Resampling.BICUBIC)
    left, top = geometry.left, geometry.top
    return resized.crop((left, top, left + size, top + size))
