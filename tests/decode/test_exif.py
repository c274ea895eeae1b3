"""EXIF orientation through the whole decoder: ignored unless asked for, then as Pillow turns it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dali_aesthetic.config import Config, ModelConfig
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.decode.pillow import decode_reference
from dali_aesthetic.launch.run import run_local
from dali_aesthetic.types import Route
from tests.conftest import write_shard
from tests.decode.encoded import DEVICES, SIZE, decode_with, decoder, mean_error, photo, pixels_by_row, save

ORIENTATIONS = range(1, 9)
XMP = b'<x tiff:Orientation="6"/>'


def tagged(orientation: int, format: str = "JPEG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(photo("coffee", 500, 333), format, exif=exif, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("apply_exif", [False, True])
def test_orientations_are_pillows_or_ignored(device: str, apply_exif: bool) -> None:
    images = [tagged(o) for o in ORIENTATIONS] + [tagged(o, progressive=True) for o in ORIENTATIONS]
    (batch,) = decode_with(decoder(16, device, apply_exif=apply_exif), images, 16)
    decoded = pixels_by_row(batch)
    for row, image in enumerate(images):
        reference = decode_reference(image, SIZE, Limits(), apply_exif=apply_exif).pixels_SSC
        assert mean_error(decoded[row], reference) < 0.3, row
        assert batch.headers[row].route is Route.DALI
        assert (batch.headers[row].width, batch.headers[row].height) == (500, 333)
    upright = decode_reference(images[0], SIZE, Limits()).pixels_SSC
    turned = [row for row in range(1, 8) if mean_error(decoded[row], upright) > 5]
    assert turned == (list(range(1, 8)) if apply_exif else [])


@pytest.mark.parametrize("apply_exif", [False, True])
def test_what_the_header_check_can_not_tell_is_pillows_when_it_matters(apply_exif: bool) -> None:
    images = [
        tagged(6, "PNG"),
        tagged(8, "WEBP"),
        save(photo("coffee", 500, 333), xmp=XMP),
        save(photo("coffee", 500, 333), exif=b"Exif\0\0no directory"),
        tagged(3, "AVIF"),
    ]
    (batch,) = decode_with(decoder(8, apply_exif=apply_exif), images, 8)
    decoded = pixels_by_row(batch)
    for row, image in enumerate(images):
        reference = decode_reference(image, SIZE, Limits(), apply_exif=apply_exif).pixels_SSC
        if apply_exif:
            assert batch.headers[row].route is Route.PILLOW
            np.testing.assert_array_equal(decoded[row], reference)
        assert mean_error(decoded[row], reference) < 0.3


def test_a_run_records_whether_it_turned_images_and_refuses_to_mix(
    tmp_path: Path, tiny_model: ModelConfig
) -> None:
    shard = write_shard(tmp_path / "in.tar", {"0000": tagged(6), "0001": tagged(1)})
    values = {"input": str(shard), "output": str(tmp_path / "out"), "device": "cpu"}
    values |= {"model": tiny_model.model_dump(), "threshold": {"raw": -1e9}}
    run_local(Config.build({**values, "decode": {"apply_exif": True}}))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["identity"]["apply_exif"] is True
    with pytest.raises(ValueError, match="apply_exif: True there, False now"):
        run_local(Config.build(values))
