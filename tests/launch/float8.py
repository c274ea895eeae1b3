"""Shared by the tests of fp8 runs: on a CPU with stand-ins for the kernels, on a GPU with the kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pyarrow.parquet as pq

from dali_aesthetic.config import Config

OPEN = {"max_mean_error": 9, "max_p99_error": 9, "max_flips": 2}
"""A gate that lets anything pass; CLOSED lets nothing."""
CLOSED = {"max_mean_error": 0}


def add_encoder(name: str, folder: Path, embed_dim: int, **vision: int) -> None:
    """Has open_clip know a small ViT with QuickGELU by `name`, from a file in `folder`."""
    config = {
        "embed_dim": embed_dim,
        "quick_gelu": True,
        "vision_cfg": vision,
        "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1},
    }
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")


def config(
    shards: str, output: Path, gate: dict[str, Any], device: str, decode: dict[str, Any], **model: Any
) -> Config:
    """A run in fp8 with random weights, unless `model` says otherwise."""
    fields = {"weights": "random:1", "heads": ("random:1",), "precision": "fp8"} | model
    return Config.build(
        {
            "input": shards,
            "output": str(output),
            "device": device,
            "threshold": {"raw": 5.0},
            "model": fields,
            "decode": decode,
            "gate": gate,
        }
    )


def record(output: Path) -> dict[str, Any]:
    """The run's `run.json`."""
    found: dict[str, Any] = json.loads((output / "run.json").read_bytes())
    return found


def scores(output: Path) -> npt.NDArray[np.float32]:
    """Of every image in order, NaN where there is none."""
    tables = [pq.read_table(path) for path in sorted((output / "scores").glob("*.parquet"))]
    return np.concatenate([table["aesthetic_score"].to_numpy(zero_copy_only=False) for table in tables])
