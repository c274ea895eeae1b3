"""A folder with the inputs that the documents' commands name, and a model small enough to run them all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from dali_aesthetic.launch import worker
from dali_aesthetic.score import build
from dali_aesthetic.score.build import ModelReader
from dali_aesthetic.score.weights import present
from tests.conftest import jpeg, write_shard
from tests.docs.commands import ROOT

SHARDS = (0, 1, 62, 63)
"""The shards that the documents' ranges begin with; a range is shortened to its first two."""


class TinyReader(ModelReader):
    """Checks that the requested weights exist by name, then reads a small random model."""

    def __init__(self, *, encoder: str, weights: str, heads: Sequence[str], model_dir: Path | None) -> None:
        present(encoder, weights, heads, model_dir)
        names = [f"random:{number}" for number in range(len(heads))]
        super().__init__(encoder="ViT-S-32-alt", weights="random:0", heads=names, model_dir=None)


@pytest.fixture
def tiny_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces only the weights; the commands run as they are written."""
    for module in (build, worker):
        monkeypatch.setattr(module, "ModelReader", TinyReader)


@pytest.fixture
def sandbox(tmp_path: Path, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the inputs that the documents name."""
    small = [photo.resize((96, 72)) for photo in photos]
    for place, number in enumerate(SHARDS):
        images = {f"{number:04d}{i}": jpeg(photo) for i, photo in enumerate(small[place::4])}
        write_shard(tmp_path / "data" / f"{number:05d}.tar", images)
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(small):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(photo))
    _write_single_images(tmp_path, small[0])
    (tmp_path / "lists").mkdir()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "aesthetic_pipeline.py").symlink_to(ROOT / "examples" / "aesthetic_pipeline.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write_single_images(folder: Path, photo: Image.Image) -> None:
    (folder / "a.jpg").write_bytes(jpeg(photo))
    webp = io.BytesIO()
    photo.save(webp, "WEBP")
    (folder / "b.webp").write_bytes(webp.getvalue())
