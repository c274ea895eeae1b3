"""The columns of `--profile` against independent implementations, on real photos."""

from __future__ import annotations

import imagehash
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import color, data, filters, measure

from dali_aesthetic.layout import PROFILE, PROFILE_SIDE
from dali_aesthetic.score.profile import pixel_profile

FLOATS = [name for name, kind in PROFILE if kind == "f4"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "cat")


@pytest.fixture(scope="module")
def squares() -> list[Image.Image]:
    photos = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOS]
    flat = Image.new("RGB", (40, 40), (200, 200, 200))
    bars = Image.new("RGB", (1600, 900))
    bars.paste(photos[0].resize((1600, 600)), (0, 150))
    side = (PROFILE_SIDE, PROFILE_SIDE)
    return [image.resize(side, Image.Resampling.BICUBIC) for image in (*photos, flat, bars)]


def expected(image: Image.Image) -> dict[str, float]:
    pixels = np.asarray(image).astype(np.float64)
    red, green, blue = pixels.transpose(2, 0, 1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    red_green, yellow_blue = ((red - green)[::2, ::2], ((red + green) / 2 - blue)[::2, ::2])
    edges = (luma[:8], luma[-8:]), (luma[:, :8], luma[:, -8:])
    return {
        "brightness": luma.mean() / 255,
        "contrast": luma.std() / 255,
        "saturation": color.rgb2hsv(np.asarray(image)[::2, ::2])[..., 1].mean(),
        "colorfulness": float(
            np.hypot(red_green.std(), yellow_blue.std())
            + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean())
        ),
        "entropy": measure.shannon_entropy(np.rint(luma[::4, ::4])),
        "sharpness": filters.laplace(luma, ksize=3)[1:-1, 1:-1].var(),
        "border_variance": min(np.stack(pair).var() for pair in edges),
    }


@pytest.mark.parametrize("device", DEVICES)
def test_columns_of_pixels_are_those_of_scikit_image_and_numpy(
    squares: list[Image.Image], device: str
) -> None:
    pixels_NPPC = torch.from_numpy(np.stack([np.asarray(image) for image in squares])).to(device)
    values_N7, _ = pixel_profile(pixels_NPPC)
    for found, image in zip(values_N7.tolist(), squares, strict=True):
        want = expected(image)
        assert dict(zip(FLOATS, found, strict=True)) == pytest.approx(want, rel=1e-4, abs=1e-4)
    assert values_N7[-1, FLOATS.index("border_variance")] == 0


@pytest.mark.parametrize("device", DEVICES)
def test_hashes_differ_from_imagehashs_of_the_whole_image_by_two_bits_at_most(device: str) -> None:
    for name in PHOTOS:
        photo = Image.fromarray(getattr(data, name)()).convert("RGB")
        square = photo.resize((PROFILE_SIDE, PROFILE_SIDE), Image.Resampling.BICUBIC)
        _, hash_N = pixel_profile(torch.from_numpy(np.asarray(square).copy())[None].to(device))
        found = imagehash.hex_to_hash(f"{hash_N.cpu().numpy().view(np.uint64)[0]:016x}")
        assert found - imagehash.phash(photo) <= 2, name


def test_images_are_profiled_alone() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (300, 64, 64, 3), np.uint8))
    values, hashes = pixel_profile(pixels)
    alone, hash_alone = pixel_profile(pixels[299:])
    torch.testing.assert_close(values[299:], alone)
    assert hashes[299:].equal(hash_alone)
