"""The second opinion: pixels, or a status with a reason, and never an exception."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dali_aesthetic.decode import pillow as module
from dali_aesthetic.decode.headers import Limits, probe
from dali_aesthetic.decode.pillow import decode_reference, rescue
from dali_aesthetic.types import ImageHeader, Route, Status
from tests.decode.damage import without_huffman_tables
from tests.decode.encoded import noise, photo, save

LIMITS = Limits()


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
