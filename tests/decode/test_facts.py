"""What the encoded bytes tell of an image, for `--profile`."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import xxhash
from PIL import Image

from dali_aesthetic.decode.facts import encoded_facts, jpeg_quality
from dali_aesthetic.decode.headers import Limits, probe
from dali_aesthetic.layout import PROFILE_SIDE
from tests.decode.encoded import DEVICES, decode_with, decoder, mean_error, photo, sample, save

SQUARE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("quality", [1, 25, 50, 75, 90, 95, 100])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_quality_of_pillows_jpegs_is_found(quality: int, progressive: bool) -> None:
    image = encode(SQUARE, "JPEG", quality=quality, progressive=progressive)
    assert jpeg_quality(image) == quality


def test_a_jpeg_without_a_luma_table_has_no_quality() -> None:
    assert jpeg_quality(b"\xff\xd8\xff\xdb") == jpeg_quality(b"") == 0


FRAMES = [SQUARE, SQUARE.rotate(90), SQUARE.rotate(180)]


@pytest.mark.parametrize(
    ("image", "frames", "alpha"),
    [
        (encode(SQUARE, "JPEG"), 1, False),
        (encode(SQUARE, "PNG"), 1, False),
        (encode(SQUARE.convert("RGBA"), "PNG"), 1, True),
        (encode(SQUARE.convert("P"), "PNG", transparency=3), 1, True),
        (encode(SQUARE, "PNG", save_all=True, append_images=FRAMES[1:]), 3, False),
        (encode(SQUARE, "WEBP"), 1, False),
        (encode(Image.new("RGBA", (40, 40), (9, 9, 9, 50)), "WEBP", lossless=True), 1, True),
        (encode(SQUARE, "WEBP", save_all=True, append_images=FRAMES[1:]), 3, False),
        (encode(SQUARE, "GIF", save_all=True, append_images=FRAMES[1:]), 3, False),
    ],
    ids=["jpeg", "png", "rgba", "palette", "apng", "webp", "webp alpha", "webp animated", "gif"],
)
def test_frames_alpha_and_digest_are_the_files(image: bytes, frames: int, alpha: bool) -> None:
    samples = [sample("a", image), sample("b", None), sample("c", b"no image")]
    headers = [probe(one.image or b"", Limits()) for one in samples]
    facts, none, bad = encoded_facts(samples, headers)
    assert (facts["num_frames"], facts["has_alpha"]) == (frames, alpha)
    assert facts["xxh3"] == xxhash.xxh3_128(image).hexdigest()
    assert none["xxh3"] == bad["xxh3"] == ""


@pytest.mark.parametrize("device", DEVICES)
def test_whole_images_come_beside_the_encoders_squares(device: str) -> None:
    """By DALI, codecs and Pillow, which all give what Pillow stretches."""
    images = [save(photo(name, 300, 200), "PNG") for name in ("coffee", "chelsea")]
    images += [save(photo(name, 200, 320)) for name in ("coffee", "astronaut")]
    images += [save(photo("coffee", 90, 60), "GIF"), b"no image"]
    plain = decode_with(decoder(4, device), images, 4)
    batches = decode_with(decoder(4, device, profile=True), images, 4)
    for batch, before in zip(batches, plain, strict=True):
        assert batch.images_NHWC.equal(before.images_NHWC)
        assert before.whole_NPPC is None
        assert batch.whole_NPPC is not None
        for place, row in enumerate(batch.rows_N.tolist()):
            opened = Image.open(io.BytesIO(bytes(batch.encoded.samples[row].image or b"")))
            side = (PROFILE_SIDE, PROFILE_SIDE)
            want = np.asarray(opened.convert("RGB").resize(side, Image.Resampling.BICUBIC))
            assert mean_error(batch.whole_NPPC[place].cpu().numpy(), want) < 0.5
