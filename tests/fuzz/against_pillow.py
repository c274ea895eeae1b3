"""Images of every format, whole and damaged: header check and decoders against Pillow alone.

What the product calls ok Pillow must open, at the same size, to nearly the same pixels. What Pillow reads
the product may refuse only for a reason that is named here. Batches hold one whole image, whose pixels the
damaged ones must not change.
"""

from __future__ import annotations

import io
import random
import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.decode.decoder import DaliDecoder
from dali_aesthetic.decode.headers import Limits, probe
from dali_aesthetic.decode.pillow import _strict, square_pixels
from dali_aesthetic.types import ImageHeader, Sample, Shard, ShardEnd, Status
from tests.decode.corpus import plain_pnm
from tests.decode.damage import as_440, with_footer
from tests.decode.encoded import mean_error, noise, photo, save
from tests.fuzz.compare import Finding

SIZE = 48
BATCH = 24
LIMITS = Limits(max_pixels=2_000_000)
_MOST_PROBE_SECONDS = 0.05
_MOST_BATCH_SECONDS = 20.0
_LARGEST_SEED = 30_000
_FARTHEST = 1.5
"""Mean error, in 1/255, between DALI's pixels and Pillow's of one damaged image."""
_SHARD = Shard(index=0, name="fuzz", kind="tar", source="fuzz.tar")
REFUSED = {
    "JPEG: no end marker after the scan": "libjpeg needs none where the data behind it suffices",
    "JPEG: ends before its first scan": "libjpeg goes on behind the end marker",
    "JPEG: more than # scans": "a limit",
    "JPEG: # bits a sample are not supported": "Pillow misreads them",
    "WebP: shorter than its RIFF size": "libwebp decodes what is there",
    "PNG: ends before its image data": "",
    "cgbi (Apple's form of PNG) is not supported": "Pillow reads its channels in a wrong order",
    "tga: Pillow finds no image in these bytes": "another format, with the footer of a TGA at its end",
    "no image format begins with": "formats that are not taken",
    "is not supported: convert it": "formats that are not taken",
}
"""Messages of deliberate refusals of what Pillow may read, and why."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What Pillow alone says: pixels [S, S, 3], or why there are none."""

    pixels_SSC: npt.NDArray[np.uint8] | None
    size: tuple[int, int] = (0, 0)
    error: str = ""


def images_case(corpus: Path | None = None) -> Callable[[random.Random], Iterator[Finding]]:
    """A case is a batch of damaged images; `corpus` adds a folder's small images to the built-in ones."""
    seeds = list(built_in_seeds())
    if corpus is not None:
        files = sorted(path for path in corpus.rglob("*") if path.is_file())
        seeds += [path.read_bytes() for path in files if 0 < path.stat().st_size <= _LARGEST_SEED]
    decoder = DaliDecoder(
        image_size=SIZE, batch_size=BATCH, device=torch.device("cpu"), num_threads=1, limits=LIMITS
    )
    return lambda rng: _judged(decoder, [_damaged(rng, seeds) for _ in range(BATCH - 1)])


@cache
def built_in_seeds() -> tuple[bytes, ...]:
    """Small images of every format, mode and way of writing."""
    image, rgba = photo("coffee", 70, 54), noise(60, 44, "RGBA")
    grey, cmyk, palette = image.convert("L"), noise(50, 40, "CMYK"), image.quantize(16)
    jpegs = [save(image, subsampling=kind, progressive=p) for kind in (0, 1, 2) for p in (False, True)]
    jpegs += [save(grey), save(grey, progressive=True), save(cmyk), save(image, keep_rgb=True)]
    jpegs += [save(image, restart_marker_blocks=3), save(image, restart_marker_rows=1, progressive=True)]
    jpegs += [save(image, optimize=True), save(image, quality=3), as_440(save(image, subsampling=1))]
    exif = Image.Exif()
    exif[0x0112] = 6
    jpegs += [save(image, exif=exif), save(image, icc_profile=b"p" * 300), save(image, comment="c")]
    frames = {"save_all": True, "append_images": [image.rotate(90)]}
    pngs = [save(image.convert(mode), "PNG") for mode in ("RGB", "L", "P", "1", "LA", "RGBA")]
    pngs += [save(image, "PNG", **frames), save(noise(50, 40, "I;16"), "PNG"), save(palette, "PNG")]
    webps = [save(image, "WEBP"), save(image, "WEBP", lossless=True), save(rgba, "WEBP")]
    webps += [
        save(rgba, "WEBP", lossless=True),
        save(image, "WEBP", **frames),
        save(image, "WEBP", exif=exif),
    ]
    tiffs = [
        save(image, "TIFF", compression=c) for c in (None, "tiff_lzw", "packbits", "jpeg", "tiff_deflate")
    ]
    tiffs += [save(image.convert("1"), "TIFF", compression="group4"), save(cmyk, "TIFF")]
    tiffs += [save(rgba, "TIFF"), save(image, "TIFF", big_tiff=True), save(image, "TIFF", **frames)]
    others = [save(image, "GIF"), save(image, "GIF", **frames), save(palette, "BMP"), save(image, "BMP")]
    others += [save(image.convert("1"), "BMP"), save(image, "AVIF"), save(rgba, "AVIF")]
    others += [save(image, "JPEG2000"), save(image, "JPEG2000", no_jp2=True), save(image, "PPM")]
    others += [save(grey, "PPM"), plain_pnm(3, noise(20, 20)), plain_pnm(1, noise(40, 40, "1"))]
    others += [with_footer(save(image, "TGA")), with_footer(save(image, "TGA", compression="tga_rle"))]
    others += [with_footer(save(image, "TGA"))[:-26], save(image.resize((48, 48)), "ICO", sizes=[(48, 48)])]
    others += [save(image, "MPO", **frames), save(image, "PCX"), save(image, "DDS"), b"8BPS\0\1" + bytes(99)]
    return (*jpegs, *pngs, *webps, *tiffs, *others)


def _judged(decoder: DaliDecoder, images: list[bytes]) -> Iterator[Finding]:
    images = [_whole(), *images]
    yield from _probed(images)
    start = time.process_time()
    try:
        with warnings.catch_warnings(action="ignore"):
            found = _decoded(decoder, images)
    except Exception as error:  # whatever it is, it is a finding
        yield Finding(f"exception: {type(error).__name__}", max(images, key=len))
        return
    if time.process_time() - start > _MOST_BATCH_SECONDS:
        yield Finding("slow: a batch", b"".join(images))
    if found[0][1] is None or not np.array_equal(found[0][1], _whole_pixels(decoder)):
        yield Finding("a neighbour changed", b"".join(images))
    for image, (header, pixels) in zip(images[1:], found[1:], strict=True):
        with warnings.catch_warnings(action="ignore"):
            kind = _disagreement(image, header, pixels)
        wrong = bool(kind) and not kind.startswith("meant: ")
        name = (
            kind or f"{header.format or 'no format'}: {'both read' if pixels is not None else 'both refuse'}"
        )
        yield Finding(name, image, wrong)


def _probed(images: list[bytes]) -> Iterator[Finding]:
    for image in images:
        start = time.thread_time()
        try:
            probe(image, LIMITS)
        except Exception as error:  # whatever it is, it is a finding
            yield Finding(f"exception of the header check: {type(error).__name__}", image)
        if time.thread_time() - start > _MOST_PROBE_SECONDS:
            yield Finding("slow: the header check", image)


@cache
def _whole() -> bytes:
    return save(photo("coffee", 90, 71))


@cache
def _whole_pixels(decoder: DaliDecoder) -> npt.NDArray[np.uint8] | None:
    return _decoded(decoder, [_whole()])[0][1]


def _decoded(
    decoder: DaliDecoder, images: list[bytes]
) -> list[tuple[ImageHeader, npt.NDArray[np.uint8] | None]]:
    """Each image's header after decoding, and its pixels [S, S, 3] where it has any."""
    found = []
    for batch in decoder.decode(fill_batches(_stream(images), BATCH, LIMITS)):
        pixels_NHWC = batch.images_NHWC.cpu().numpy()
        pixels = {int(row): pixels_NHWC[place].copy() for place, row in enumerate(batch.rows_N)}
        found += [(header, pixels.get(row)) for row, header in enumerate(batch.headers)]
    assert len(found) == len(images)
    return found


def _stream(images: list[bytes]) -> Iterator[Sample | ShardEnd]:
    for number, image in enumerate(images):
        yield Sample(shard=_SHARD, key=str(number), image=image, entries=(), source="fuzz.tar", offset=0)
    yield ShardEnd(shard=_SHARD)


def _reference(image: bytes) -> Reference:
    """Pillow's own opinion, with all of its formats but those that start other programs."""
    Image.init()
    formats = [name for name in Image.ID if name not in ("EPS", "WMF")]
    size = (0, 0)
    try:
        with _strict.within(LIMITS), Image.open(io.BytesIO(image), formats=formats) as opened:
            size = opened.size
            if size[0] * size[1] > LIMITS.max_pixels:
                return Reference(None, size, "too large")
            opened.load()
            return Reference(square_pixels(opened, SIZE), opened.size)
    except Exception as error:  # Pillow's plugins raise nearly every type
        return Reference(None, size, f"{type(error).__name__}: {error}")


def _disagreement(image: bytes, header: ImageHeader, pixels: npt.NDArray[np.uint8] | None) -> str:
    """The kind of a disagreement, or "meant: WHY", or nothing."""
    if (header.status is Status.OK) != (pixels is not None) or bool(header.message) == (pixels is not None):
        return f"status {header.status} with pixels, or without a reason"
    if header.status is Status.TOO_LARGE:
        return "meant: too large"
    reference = _reference(image)
    if pixels is None:
        if reference.pixels_SSC is None:
            return ""
        known = next((reason for reason in REFUSED if reason in _plain(header.message)), "")
        said = _plain(header.message)
        return f"meant: {known}" if known else f"refused {header.format}: {said}"
    if reference.pixels_SSC is None:
        return f"accepted {header.format} by {header.route}: {_plain(reference.error)}"
    if (header.width, header.height) != reference.size:
        return f"size of {header.format} by {header.route}"
    if mean_error(pixels, reference.pixels_SSC) > _FARTHEST:
        return f"pixels of {header.format} by {header.route}"
    return ""


def _plain(message: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\d+", "#", re.sub(r"b'.*?'|<.*>", "…", message))[:70]


# --- making damage ---

_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 0x7F, 0x80, 0xC0, 0xC2, 0xC4, 0xD0, 0xD8, 0xD9, 0xDA, 0xDD, 0xFE, 0xFF)


def _damaged(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A seed, most often with one to four changes of its parts or its bytes."""
    image = rng.choice(seeds)
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 4))):
        image = (_rearranged if rng.random() < 0.35 else _changed)(rng, image, seeds)
    return image[:200_000]


def _changed(rng: random.Random, image: bytes, seeds: list[bytes]) -> bytes:
    """Bytes changed, lost or added, most often near the start."""
    data = bytearray(image)
    if not data:
        return image
    at = rng.randrange(len(data)) if rng.random() < 0.5 else min(len(data) - 1, int(rng.expovariate(1 / 60)))
    kind = rng.randrange(10)
    if kind < 3:
        data[at] = rng.choice((rng.randrange(256), data[at] ^ (1 << rng.randrange(8)), rng.choice(_NUMBERS)))
    elif kind == 3:
        number = rng.choice((0, 1, 2, 0xFF, 0xFFFF, 0x7FFF, 0x8000, 33, rng.randrange(1 << 16)))
        data[at : at + 2] = number.to_bytes(2, rng.choice(("big", "little")))
    elif kind == 4:
        number = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(data), rng.randrange(1 << 20)))
        data[at : at + 4] = number.to_bytes(4, rng.choice(("big", "little")))
    elif kind == 5:
        del data[at:]
    elif kind == 6:
        del data[at : at + rng.choice((1, 2, 4, 30, 300))]
    elif kind == 7:
        data[at:at] = rng.choice((b"\0", b"\xff", b"\xff\xd9", b"\xff\xd0", bytes(200), rng.randbytes(20)))
    elif kind == 8:
        length = rng.choice((4, 64, 500))
        data[at : at + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    else:
        data += rng.choice((bytes(500), b"<html>" * 50, rng.choice(seeds)))
    return bytes(data)


def _rearranged(rng: random.Random, image: bytes, seeds: list[bytes]) -> bytes:
    """Segments, chunks or boxes left out, doubled, swapped, changed, or taken from another image."""
    parts = _parts(image)
    if len(parts) < 3:
        return _changed(rng, image, seeds)
    at, other = rng.randrange(1, len(parts)), rng.randrange(1, len(parts))
    kind = rng.randrange(6)
    if kind == 0:
        del parts[at]
    elif kind == 1:
        parts.insert(other, parts[at])
    elif kind == 2:
        parts[at], parts[other] = parts[other], parts[at]
    elif kind == 3:
        more = _parts(rng.choice(seeds))
        parts.insert(at, rng.choice(more))
    elif kind == 4:
        parts[at:at] = [parts[at]] * rng.choice((3, 30, 300))
    else:
        changed = bytearray(parts[at])
        changed[rng.randrange(min(len(changed), 24))] = rng.choice((*_NUMBERS, rng.randrange(256)))
        parts[at] = bytes(changed)
    return _mended(b"".join(parts)) if rng.random() < 0.8 else b"".join(parts)


def _parts(image: bytes) -> list[bytes]:
    """The image cut at its own borders: JPEG segments, PNG chunks, RIFF chunks, ISO boxes; else in eight."""
    cuts, at = [0], 0
    if image[:2] == b"\xff\xd8":
        cuts += [found.start() for found in re.finditer(rb"\xff[\xc0-\xcf\xd8-\xfe]", image)]
    elif image[:4] == b"\x89PNG":
        at = 8
        while at + 12 <= len(image):
            cuts.append(at)
            at += 12 + int.from_bytes(image[at : at + 4], "big")
    elif image[:4] == b"RIFF":
        at = 12
        while at + 8 <= len(image):
            cuts.append(at)
            at += 8 + (int.from_bytes(image[at + 4 : at + 8], "little") + 1 & -2)
    elif image[4:8] in (b"ftyp", b"jP  "):
        while at + 8 <= len(image):
            cuts.append(at)
            at += max(8, int.from_bytes(image[at : at + 4], "big"))
    else:
        cuts += [len(image) * part // 8 for part in range(1, 8)]
    cuts = [*sorted({cut for cut in cuts if cut < len(image)}), len(image)]
    return [image[start:end] for start, end in pairwise(cuts) if end > start]


def _mended(image: bytes) -> bytes:
    """With the sums and lengths right that would otherwise end every reader's look at once."""
    if image[:4] == b"RIFF":
        return image[:4] + (len(image) - 8).to_bytes(4, "little") + image[8:]
    if image[:4] != b"\x89PNG":
        return image
    done, at = [image[:8]], 8
    while at + 12 <= len(image):
        length = int.from_bytes(image[at : at + 4], "big")
        body = image[at + 4 : at + 8 + length]
        done.append(image[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big"))
        at += 12 + length
    return b"".join(done) + image[at:]
