"""DALI's resize against PIL's on real photos, odd sizes and line art, on the CPU and the GPU."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from dali_aesthetic.config import ConfigError
from dali_aesthetic.decode.geometry import resize_steps
from dali_aesthetic.decode.handoff import to_torch
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.decode.pillow import decode_reference
from dali_aesthetic.decode.pipelines import build_pipeline, import_dali
from tests.decode.encoded import SIZE, decode_with, decoder, mean_error, photo, pixels_by_row, save

LIMITS = Limits(max_pixels=10**9, max_pixels_per_byte=10**9)
MEAN, WORST = 0.05, 0.2
"""Over all images, and of one image, in 1/255."""
DEVICES = [pytest.param(None, id="cpu"), pytest.param(0, id="gpu", marks=pytest.mark.gpu)]
SIDES = (32, 223, 224, 225, 226, 227, 229, 449)
ODD = [
    *((width, height) for width in SIDES for height in SIDES),
    *[(40, 4000), (4000, 40), (97, 1009), (2240, 224), (33, 3300), (6001, 601)],
]
"""Below `probe.TINY_SIDE` DALI is not asked."""


def decode(images: list[bytes], sizes: list[tuple[int, int]], device_id: int | None) -> np.ndarray:
    feed = [np.frombuffer(image, np.uint8) for image in images], *resize_steps(sizes, SIZE)
    pipeline = build_pipeline(
        lambda: feed,
        max_batch=len(images),
        num_threads=2,
        device_id=device_id,
        prefetch=1,
    )
    (decoded,) = pipeline.run()
    return to_torch(decoded).cpu().numpy()


def errors(images: list[Image.Image], device_id: int | None, format: str = "PNG") -> list[float]:
    """Mean error of each image. PNG shows the resize alone."""
    encoded = [save(image, format) for image in images]
    decoded = decode(encoded, [image.size for image in images], device_id)
    pairs = zip(decoded, encoded, strict=True)
    return [mean_error(ours, decode_reference(image, SIZE, LIMITS).pixels_SSC) for ours, image in pairs]


@pytest.mark.parametrize("device_id", DEVICES)
def test_real_photos_are_pils(photos: list[Image.Image], device_id: int | None) -> None:
    found = errors(photos, device_id, "JPEG")
    assert np.mean(found) <= MEAN
    assert max(found) <= WORST


@pytest.mark.parametrize("device_id", DEVICES)
def test_odd_sizes_are_pils(device_id: int | None) -> None:
    source = photo("coffee")
    found = errors([source.resize(size) for size in ODD], device_id)
    assert np.mean(found) <= MEAN
    assert {size: error for size, error in zip(ODD, found, strict=True) if error > WORST} == {}


def test_tiny_images_are_pils_because_it_decodes_them() -> None:
    """PIL renormalises its kernel at the border, DALI repeats the edge: here the border is a large share."""
    sizes = [(1, 1), (1, 100), (100, 1), (7, 700), (700, 7), (2, 2), (31, 31), (3, 300), (5000, 31)]
    images = [save(photo("coffee", *size)) for size in sizes]
    (batch,) = decode_with(decoder(16), images, 16)
    for row, pixels in pixels_by_row(batch).items():
        np.testing.assert_array_equal(pixels, decode_reference(images[row], SIZE, LIMITS).pixels_SSC)
    assert len(batch.rows_N) == len(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("device_id", DEVICES)
def test_a_hundred_megapixels_are_pils(device_id: int | None) -> None:
    large = photo("coffee").resize((12000, 9000))
    (error,) = errors([large], device_id, "JPEG")
    assert error <= WORST


@pytest.mark.parametrize("device_id", DEVICES)
def test_grey_jpegs_become_rgb(device_id: int | None) -> None:
    (error,) = errors([photo().convert("L")], device_id, "JPEG")
    assert error <= WORST


@pytest.mark.parametrize("device_id", DEVICES)
def test_black_and_white_is_pils(device_id: int | None) -> None:
    """PIL clips between its two passes, which shows where pixels overshoot: one resize is 2.8 off here."""
    noise = np.random.default_rng(0).integers(0, 2, (700, 900), np.uint8) * 255
    stripes = np.tile(np.repeat([0, 255], 3), (900, 150)).astype(np.uint8)
    found = errors([Image.fromarray(pixels).convert("RGB") for pixels in (noise, stripes)], device_id)
    assert max(found) <= WORST


def test_a_missing_dali_is_told_with_the_extra_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ConfigError, match=r"needs NVIDIA DALI .*pip install '\.\[cuda13\]'.*'\.\[cuda12\]'"):
        import_dali()
    with pytest.raises(ConfigError, match="needs NVIDIA DALI"):
        decode([], [], None)
