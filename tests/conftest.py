"""What several rooms' tests share: real photos, real heads, small real shards."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def heads_dir() -> Path:
    """The published heads and real embeddings; they are data beside the project, so they may be absent."""
    folder = Path(os.environ.get("DALI_AESTHETIC_HEADS", REPOSITORY.parent / "shared" / "heads"))
    if not folder.is_dir():
        pytest.skip(f"no published heads in {folder}: set DALI_AESTHETIC_HEADS")
    return folder


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """Real photos of different sizes and aspect ratios (scikit-image ships them)."""
    from skimage import data

    names = ("astronaut", "chelsea", "coffee", "rocket", "retina", "camera", "hubble_deep_field")
    whole = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in names]
    tall = [photo.crop((0, 0, photo.width // 2, photo.height)) for photo in whole]
    small = [photo.resize((photo.width // 3 + 1, photo.height // 3)) for photo in whole]
    return [*whole, *tall, *small]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Ray on this machine, with two CPUs and on loopback. For tests marked `ray`."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("ray.data", reason="Ray Data is not installed")
    ray.init(
        num_cpus=2,
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 << 20,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def _ray_only_where_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """`make test` keeps those marked `ray` away from all others: one without the mark would slip through."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        assert any(item.get_closest_marker("ray") for item in request.session.items), "mark it `ray`"


def jpeg(image: Image.Image, quality: int = 90, **options: Any) -> bytes:
    """`image` as JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """One regular file, written with fixed owner and time."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mtime = 1_700_000_000
    tar.addfile(info, io.BytesIO(content))


def write_shard(path: Path, images: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> Path:
    """A WebDataset shard: for each key a jpg, a txt and a json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for key, image in images.items():
            add_member(tar, f"{key}.jpg", image)
            add_member(tar, f"{key}.txt", f"caption of {key}".encode())
            add_member(tar, f"{key}.json", json.dumps({"caption": key, "url": f"http://x/{key}"}).encode())
    return path


@pytest.fixture(scope="session")
def shards_dir(tmp_path_factory: pytest.TempPathFactory, photos: list[Image.Image]) -> Path:
    """Three shards, 21 photos, with one broken image and one empty one in the middle shard."""
    folder = tmp_path_factory.mktemp("shards")
    encoded = [jpeg(photo) for photo in photos]
    for shard in range(3):
        images = {f"{shard}{i:03d}": image for i, image in enumerate(encoded[shard::3])}
        if shard == 1:
            images["1500"] = encoded[0][: len(encoded[0]) // 2]
            images["1501"] = b""
            images["1502"] = encoded[3]
        write_shard(folder / f"{shard:05d}.tar", images)
    return folder


@pytest.fixture(scope="session")
def tiny_model() -> Any:
    """The smallest model the package runs: fast, deterministic, meaningless."""
    from dali_aesthetic.config import ModelConfig

    return ModelConfig(encoder="ViT-S-32-alt", weights="random:1", heads=("random:1",))


def read_members(path: Path) -> list[tuple[str, bytes]]:
    """Names and contents of a tar's members, in order."""
    with tarfile.open(path) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]


Snapshot = Callable[[Path], dict[str, bytes]]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its bytes, but for what tells versions, paths and times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "timing.jsonl")
    }


def mean_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Mean absolute difference of uint8 images, in units of 1/255."""
    return float(np.abs(ours.astype(np.int16) - reference.astype(np.int16)).mean())
