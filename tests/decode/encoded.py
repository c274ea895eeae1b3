"""Encoded images for this room's tests: photos in many forms, whole and broken."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from skimage import data

from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.decode.decoder import DaliDecoder
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.types import ImageBatch, Sample, Shard, ShardEnd, Status

SIZE = 224
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHARD = Shard(index=0, name="00000", kind="tar", source="00000.tar")


def photo(name: str = "astronaut", width: int | None = None, height: int | None = None) -> Image.Image:
    """A real photo, resized where a size is given."""
    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    return image.resize((width or image.width, height or image.height), Image.Resampling.BICUBIC)


def save(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    """`image` in `format`."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 24, mode: str = "RGB") -> Image.Image:
    """The same noise for the same arguments."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    if mode == "CMYK":  # with black ink, which a conversion from RGB leaves out
        return Image.frombytes(mode, (width, height), pixels.tobytes())
    return Image.fromarray(pixels).convert(mode)


def sample(key: str, image: bytes | None, status: Status = Status.OK) -> Sample:
    """A sample as the reader gives it; None is a sample without an image."""
    status = Status.MISSING_IMAGE if image is None else status
    return Sample(shard=SHARD, key=key, image=image, entries=(), source="00000.tar", offset=0, status=status)


def stream(images: Iterable[bytes | None]) -> Iterator[Sample | ShardEnd]:
    """The samples of one shard, and its end."""
    for i, image in enumerate(images):
        yield sample(f"{i:05d}", image)
    yield ShardEnd(shard=SHARD)


def decoder(batch_size: int, device: str = "cpu", limits: Limits | None = None, **more: bool) -> DaliDecoder:
    """A decoder to 224 x 224."""
    return DaliDecoder(
        image_size=SIZE,
        batch_size=batch_size,
        device=torch.device(device),
        num_threads=2,
        limits=limits or Limits(),
        **more,
    )


def decode_with(
    decoder: DaliDecoder, images: Sequence[bytes | None], batch_size: int, limits: Limits | None = None
) -> list[ImageBatch]:
    """All batches of one shard of `images`."""
    return list(decoder.decode(fill_batches(stream(images), batch_size, limits or Limits())))


def pixels_by_row(batch: ImageBatch) -> dict[int, npt.NDArray[np.uint8]]:
    """Row of the batch to its pixels [S, S, 3]."""
    images_NHWC = batch.images_NHWC.cpu().numpy()
    return {int(row): images_NHWC[i] for i, row in enumerate(batch.rows_N)}


def mean_error(ours: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8]) -> float:
    """Mean absolute difference, in units of 1/255."""
    return float(np.abs(ours.astype(np.int16) - reference.astype(np.int16)).mean())
