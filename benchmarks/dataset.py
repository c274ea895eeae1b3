"""Shards to measure on: random crops of real photos, of a given size and kind, as WebDataset tars."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
KINDS = ("baseline", "progressive", "progressive-30", "mixed", "bad")
_BAD_EVERY = 20


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """`distinct` images of `short_side` pixels in one shard, which is linked `num_shards` times.

    `kind`: baseline or progressive JPEG; `progressive-30` is 30% progressive, the rest baseline; `mixed` is
    half baseline JPEG, a quarter PNG, a quarter WebP; `bad` is baseline with every twentieth image cut off,
    empty, another file or scrambled, in turn.
    """

    short_side: int = 512
    quality: int = 90
    distinct: int = 2048
    num_shards: int = 8
    kind: str = "baseline"

    def __post_init__(self) -> None:
        """Raises ValueError for a kind that there isn't."""
        if self.kind not in KINDS:
            raise ValueError(f"no kind {self.kind!r}: there are {', '.join(KINDS)}")

    @property
    def num_images(self) -> int:
        return self.distinct * self.num_shards

    @property
    def name(self) -> str:
        """Says everything but the counts: `baseline-512`."""
        return f"{self.kind}-{self.short_side}"


def make_dataset(folder: Path, spec: DatasetSpec, num_processes: int) -> str:
    """Write the shards into `folder`, unless the same ones are there; the glob that names them."""
    marker = folder / "spec.json"
    pattern = str(folder / "bench-*.tar")
    if marker.exists() and json.loads(marker.read_text()) == asdict(spec):
        return pattern
    folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)  # cut off in the middle, they must not pass for those of the spec before
    for shard in folder.glob("bench-*.tar"):
        shard.unlink()
    first = folder / "bench-00000.tar"
    numbers = range(spec.distinct)
    if num_processes == 1:
        _write(first, map(partial(_image, spec), numbers))
    else:
        with ProcessPoolExecutor(num_processes) as processes:
            _write(first, processes.map(partial(_image, spec), numbers, chunksize=8))
    for number in range(1, spec.num_shards):
        (folder / f"bench-{number:05d}.tar").symlink_to(first.name)
    marker.write_text(json.dumps(asdict(spec)))
    return pattern


def link_shards(folder: Path, source: Path, count: int) -> str:
    """`count` links to the tar `source`, alone in `folder`; their glob."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"link-{number:06d}.tar").symlink_to(source.resolve())
    return str(folder / "link-*.tar")


def cut_dataset(folder: Path, source: Path, num_shards: int, per_shard: int) -> str:
    """`num_shards` small tars with the first `per_shard` samples of the tar `source`; their glob."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(source) as tar:
        entries = [(member, tar.extractfile(member)) for member in list(tar)[: 3 * per_shard]]
        members = [(member, content.read()) for member, content in entries if content is not None]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    for number in range(num_shards):
        (folder / f"small-{number:05d}.tar").write_bytes(buffer.getvalue())
    return str(folder / "small-*.tar")


def _image(spec: DatasetSpec, number: int) -> tuple[str, bytes]:
    """Extension and bytes: a crop of a photo, aspect ratios between 1:1 and 16:9, both ways."""
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
    return _encode(spec, number, photo.resize((width, height), Image.Resampling.BICUBIC, box=box))


def _encode(spec: DatasetSpec, number: int, image: Image.Image) -> tuple[str, bytes]:
    if spec.kind == "mixed" and number % 4 == 2:
        return "png", _saved(image, "PNG", compress_level=1)
    if spec.kind == "mixed" and number % 4 == 3:
        return "webp", _saved(image, "WEBP", quality=spec.quality, method=1)
    progressive = spec.kind == "progressive" or (spec.kind == "progressive-30" and number % 10 in (0, 3, 6))
    jpeg = _saved(image, "JPEG", quality=spec.quality, progressive=progressive)
    if spec.kind == "bad" and number % _BAD_EVERY == 0:
        return "jpg", _DAMAGES[number // _BAD_EVERY % len(_DAMAGES)](jpeg)
    return "jpg", jpeg


def _saved(image: Image.Image, format: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _scrambled(jpeg: bytes) -> bytes:
    """Headers and end marker as they were, the scan overwritten: only decoding finds out."""
    third = len(jpeg) // 3
    return jpeg[:third] + bytes(third) + jpeg[2 * third :]


_DAMAGES: tuple[Callable[[bytes], bytes], ...] = (
    lambda jpeg: jpeg[: len(jpeg) // 2],
    lambda jpeg: b"",
    lambda jpeg: b"<html><body>404 not found</body></html>",
    _scrambled,
)


def _photo(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB")


def _write(path: Path, images: Iterator[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (extension, image) in enumerate(images):
            key = f"{number:08d}"
            metadata = json.dumps({"key": key, "caption": "a photo", "url": f"http://example.org/{key}"})
            for suffix, content in ((extension, image), ("txt", b"a photo"), ("json", metadata.encode())):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
