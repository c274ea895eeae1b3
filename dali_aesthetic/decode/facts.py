"""Columns of `--profile` that the encoded bytes tell, made in a thread beside decoding."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from dali_aesthetic.layout import PROFILE
from dali_aesthetic.types import Buffer, ImageHeader, Route, Sample

_TABLE_WITHIN = 1 << 16
"""Bytes from the start in which a JPEG's luma table is looked for; metadata may come before it."""
_LUMA = np.array(
    [
        *(16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49),
        *(35, 37, 29, 40, 58, 51, 61, 60, 57, 51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56),
        *(80, 109, 81, 87, 95, 98, 103, 104, 103, 62, 77, 113, 121, 112, 100, 120, 92, 101, 103, 99),
    ],
    np.int64,
)
"""The luma table of T.81, K.1, in zigzag order."""
_QUALITY = np.arange(1, 101)
_PERCENT = np.where(_QUALITY < 50, 5000 // _QUALITY, 200 - 2 * _QUALITY)
_SUMS = ((_LUMA * _PERCENT[:, None] + 50) // 100).clip(1, 255).sum(1)
"""The sum of the luma table that libjpeg writes for each quality, as `jpeg_quality_scaling` has it."""


def encoded_facts(samples: Sequence[Sample], headers: Sequence[ImageHeader]) -> npt.NDArray[np.void]:
    """Rows of `PROFILE` with what the bytes tell; other columns are 0, as are rows without an image."""
    facts_R = np.zeros(len(samples), PROFILE)
    for row, (sample, header) in enumerate(zip(samples, headers, strict=True)):
        if sample.image is None or header.route is Route.NOBODY:
            continue
        jpeg = header.format == "jpeg"
        frames, alpha = (1, False) if jpeg else _frames_and_alpha(sample.image)
        facts_R["xxh3"][row] = xxhash.xxh3_128_hexdigest(sample.image)
        facts_R["num_frames"][row], facts_R["has_alpha"][row] = frames, alpha
        facts_R["jpeg_quality"][row] = jpeg_quality(sample.image) if jpeg else 0
    return facts_R


def jpeg_quality(image: Buffer) -> int:
    """libjpeg's quality, 1 to 100, whose luma table has the sum nearest to the image's; 0 without a table."""
    data = bytes(image[:_TABLE_WITHIN])
    at = data.find(b"\xff\xdb")
    while at >= 0:
        kind, table = data[at + 4 : at + 5], data[at + 5 : at + 69]
        if kind == b"\0" and len(table) == 64:
            return int(_QUALITY[np.abs(_SUMS - sum(table)).argmin()])
        at = data.find(b"\xff\xdb", at + 2)
    return 0


def _frames_and_alpha(image: Buffer) -> tuple[int, bool]:
    """By the container; 0 frames where Pillow can't tell."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return int(getattr(opened, "n_frames", 1)), opened.has_transparency_data
    except Exception:  # Pillow's plugins raise nearly every type for damaged data
        return 0, False
