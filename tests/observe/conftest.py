"""A small real run on the CPU to look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest

from dali_aesthetic.config import Config
from tests.conftest import jpeg, write_shard
from tests.faults.runs import TINY, noise

MODEL = {"encoder": "tiny-vit-observed", "weights": "random:1", "heads": ["random:1"]}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of 12 images, in each an empty one and one that is none; the last is no tar."""
    folder = tmp_path_factory.mktemp("observed")
    for shard in range(3):
        images = {f"{shard}{i:03d}": jpeg(noise(40 + i, 50 * shard + i)) for i in range(10)}
        write_shard(folder / f"{shard:05d}.tar", {**images, f"{shard}010": b"", f"{shard}011": b"<html>"})
    (folder / "00003.tar").write_bytes(b"no tar at all" * 100)
    return folder


@pytest.fixture
def config(source: Path, tmp_path: Path) -> Callable[..., Config]:
    """The config of a run over `source` with these fields on top."""
    models = tmp_path / "models"
    models.mkdir()
    (models / f"{MODEL['encoder']}.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(models)

    def make(**more: Any) -> Config:
        base = {"input": str(source), "output": str(tmp_path / "out"), "device": "cpu", "model": MODEL}
        return Config.build({**base, "decode": {"batch_size": 4, "num_threads": 1}, **more})

    return make
