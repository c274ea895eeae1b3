"""Shards to measure on: random crops of real photos, at a given size, as WebDataset tars."""

from __future__ import annotations

import io
import json
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """`distinct` images of `short_side` pixels in one shard, which is linked `num_shards` times."""

    short_side: int = 512
    quality: int = 90
    distinct: int = 2048
    num_shards: int = 8
    progressive: bool = False

    @property
    def num_images(self) -> int:
        return self.distinct * self.num_shards


def make_dataset(folder: Path, spec: DatasetSpec, num_processes: int) -> str:
    """Write the shards into `folder`; the glob that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / "bench-00000.tar"
    with ProcessPoolExecutor(num_processes) as processes:
        images = list(processes.map(partial(_image, spec), range(spec.distinct), chunksize=16))
    _write(first, images)
    for number in range(1, spec.num_shards):
        (folder / f"bench-{number:05d}.tar").symlink_to(first.name)
    return str(folder / "bench-*.tar")


def _image(spec: DatasetSpec, number: int) -> bytes:
    """A crop of a photo, scaled to the short side; aspect ratios between 1:1 and 16:9, both ways."""
    rng = np.random.default_rng(number)
    photo = _photo(PHOTOS[number % len(PHOTOS)])
    aspect = float(rng.uniform(1.0, 16 / 9))
    width, height = spec.short_side, round(spec.short_side * aspect)
    if rng.random() < 0.7:
        width, height = height, width
    share = float(rng.uniform(0.5, 0.95))
    scale = share * min(photo.width / width, photo.height / height)
    crop_width, crop_height = width * scale, height * scale
    left = float(rng.uniform(0, photo.width - crop_width))
    top = float(rng.uniform(0, photo.height - crop_height))
    box = (left, top, left + crop_width, top + crop_height)
    image = photo.resize((width, height), Image.Resampling.BICUBIC, box=box)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=spec.quality, progressive=spec.progressive)
    return buffer.getvalue()


def _photo(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB")


def _write(path: Path, images: list[bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, image in enumerate(images):
            key = f"{number:08d}"
            metadata = json.dumps({"key": key, "caption": "a photo", "url": f"http://example.org/{key}"})
            for suffix, content in (("jpg", image), ("txt", b"a photo"), ("json", metadata.encode())):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
