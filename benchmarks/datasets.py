"""Shards to measure on: WebDataset tars of random crops of real photos, by kind and size."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from dali_aesthetic.overlap import cpu_count

PHOTOS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
KINDS = ("webmix", "baseline", "two-layouts", "grey-5", "progressive", "progressive-30", "mixed", "bad")
MEASURED = (
    ("baseline", 512),
    ("webmix", 0),
    ("bad", 512),
    ("two-layouts", 512),
    ("grey-5", 512),
    ("progressive-30", 512),
    ("progressive", 512),
    ("baseline", 256),
    ("baseline", 1024),
    ("mixed", 512),
)
"""Kinds and pixels of the short side, the most important first: a run may be cut off."""
MIXTURES = ("webmix", "two-layouts", "grey-5")
"""Kinds that each encoder is measured on: what the web has, and what decodes unlike one kind alone."""
_TITLES = {
    "bad": "5% bad",
    "progressive-30": "30% progressive",
    "two-layouts": "4:2:0 and 4:4:4",
    "grey-5": "5% grey",
    "baseline": "baseline 4:2:0 only",
}
_WEB_SHARES = {
    "4:2:0": 118,
    "4:4:4": 24,
    "4:2:2": 6,
    "progressive": 20,
    "grey": 2,
    "grey 2x2": 2,
    "png": 16,
    "webp": 8,
    "lossless webp": 2,
    "gif": 1,
    "avif": 1,
}
"""Images of a kind among 200 of `webmix`."""
_WEB_SIDES, _WEB_QUALITIES = (200, 1600), (60, 95)
_BAD_EVERY = 20


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """A shard of `distinct` images with a short side of `short_side` pixels, linked `num_shards` times.

    `kind`: baseline or progressive JPEG; `progressive-30` is 30% progressive, the rest baseline; `mixed` is
    half baseline JPEG, a quarter PNG, a quarter WebP; `two-layouts` is two thirds 4:2:0 and one third 4:4:4,
    `grey-5` 4:2:0 and 5% grey, both shuffled; `webmix` is `_WEB_SHARES`, shuffled, with short sides that are
    log-uniform (`short_side` is 0) and a quality drawn for each image; `bad` is baseline with every twentieth
    image truncated, empty, another file or scrambled, in turn.
    """

    short_side: int = 512
    quality: int = 90
    distinct: int = 2048
    num_shards: int = 8
    kind: str = "baseline"

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown kind."""
        if self.kind not in KINDS:
            raise ValueError(f"no kind {self.kind!r}: there are {', '.join(KINDS)}")

    @property
    def num_images(self) -> int:
        return self.distinct * self.num_shards

    @property
    def name(self) -> str:
        """Kind and size: `baseline-512`; `webmix` has no size."""
        return f"{self.kind}-{self.short_side}" if self.short_side else self.kind


def make_dataset(folder: Path, spec: DatasetSpec, num_processes: int) -> str:
    """Write the shards into `folder`, unless the same ones are there; returns their glob."""
    marker = folder / "spec.json"
    pattern = str(folder / "bench-*.tar")
    if marker.exists() and json.loads(marker.read_text()) == asdict(spec):
        return pattern
    folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)  # first: shards that are cut off must not pass for the earlier spec's
    for shard in folder.glob("bench-*.tar"):
        shard.unlink()
    first = folder / "bench-00000.tar"
    numbers = range(spec.distinct)
    if num_processes == 1:
        _write(first, map(partial(_image, spec), numbers))
    else:
        # A fork of a process that runs DALI's threads crashes now and then.
        with ProcessPoolExecutor(num_processes, get_context("forkserver")) as processes:
            _write(first, processes.map(partial(_image, spec), numbers, chunksize=8))
    for number in range(1, spec.num_shards):
        (folder / f"bench-{number:05d}.tar").symlink_to(first.name)
    marker.write_text(json.dumps(asdict(spec)))
    return pattern


def link_shards(folder: Path, source: Path, count: int) -> str:
    """Fill `folder` with `count` links to the tar `source`; returns their glob."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"link-{number:06d}.tar").symlink_to(source.resolve())
    return str(folder / "link-*.tar")


def cut_dataset(folder: Path, source: Path, num_shards: int, per_shard: int) -> str:
    """Write `num_shards` tars, each with the first `per_shard` samples of `source`; returns their glob."""
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


def title_of(kind: str, short_side: int) -> str:
    """A kind and size as the names of rows have it."""
    name = _TITLES.get(kind, kind)
    return f"{name}, {short_side} px" if short_side and kind != "webmix" else name


@dataclass(frozen=True, slots=True)
class Datasets:
    """The shards of a whole benchmark run, made on demand below `folder`, a folder for each kind."""

    folder: Path
    distinct: int
    num_shards: int

    def make(self, kind: str = "baseline", short_side: int = 512) -> str:
        """Make the shards of a kind, unless they are there; returns their glob."""
        spec = self.spec(kind, short_side)
        return make_dataset(self.folder / spec.name, spec, cpu_count())

    def spec(self, kind: str, short_side: int) -> DatasetSpec:
        """`distinct` images, half as many where decoding takes long."""
        few = short_side > 512 or kind in ("progressive", "mixed")
        short_side = 0 if kind == "webmix" else short_side
        distinct = max(32, self.distinct // 2) if few else self.distinct
        return DatasetSpec(short_side=short_side, distinct=distinct, num_shards=self.num_shards, kind=kind)


def _image(spec: DatasetSpec, number: int) -> tuple[str, bytes]:
    """Extension and bytes of a crop of a photo, upright or not, of an aspect ratio from 1:1 to 16:9."""
    rng = np.random.default_rng(number)
    photo = _photo(PHOTOS[number % len(PHOTOS)])
    aspect = float(rng.uniform(1.0, 16 / 9))
    short = spec.short_side or round(float(np.exp(rng.uniform(*np.log(_WEB_SIDES)))))
    width, height = short, round(short * aspect)
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
    if spec.kind == "webmix":
        return _of_web(number, image)
    if spec.kind == "mixed" and number % 4 == 2:
        return "png", _saved(image, "PNG", compress_level=1)
    if spec.kind == "mixed" and number % 4 == 3:
        return "webp", _saved(image, "WEBP", quality=spec.quality, method=1)
    chance = np.random.default_rng((number, 1)).random()
    subsampling = 0 if spec.kind == "two-layouts" and chance < 1 / 3 else 2
    if spec.kind == "grey-5" and chance < 0.05:
        image, subsampling = image.convert("L"), 0 if chance < 0.025 else 2
    progressive = spec.kind == "progressive" or (spec.kind == "progressive-30" and number % 10 in (0, 3, 6))
    jpeg = _saved(image, "JPEG", quality=spec.quality, progressive=progressive, subsampling=subsampling)
    if spec.kind == "bad" and number % _BAD_EVERY == 0:
        return "jpg", _DAMAGES[number // _BAD_EVERY % len(_DAMAGES)](jpeg)
    return "jpg", jpeg


def _of_web(number: int, image: Image.Image) -> tuple[str, bytes]:
    kinds = [kind for kind, count in _WEB_SHARES.items() for _ in range(count)]
    block, place = divmod(number, len(kinds))
    kind = kinds[np.random.default_rng((block, 2)).permutation(len(kinds))[place]]
    quality = int(np.random.default_rng((number, 3)).integers(*_WEB_QUALITIES, endpoint=True))
    if kind in ("png", "gif"):
        return kind, _saved(image, kind)
    if kind == "avif":
        return kind, _saved(image, "AVIF", quality=quality, speed=8)
    if "webp" in kind:
        return "webp", _saved(image, "WEBP", quality=quality, method=2, lossless="lossless" in kind)
    subsampling = {"4:4:4": 0, "4:2:2": 1, "grey": 0}.get(kind, 2)
    if kind == "progressive" and number % 4 == 0:
        subsampling = 0
    image = image.convert("L") if "grey" in kind else image
    progressive = kind == "progressive"
    return "jpg", _saved(image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)


def _saved(image: Image.Image, format: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _scrambled(jpeg: bytes) -> bytes:
    """Overwrite the scan and keep headers and end marker: only decoding finds the damage."""
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
