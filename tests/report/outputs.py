"""Outputs made by the real readers and writers from given scores."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.types import (
    EncodedBatch,
    ImageHeader,
    Route,
    Sample,
    ScoredBatch,
    Shard,
    ShardEnd,
    Status,
)
from dali_aesthetic.write.sink import ShardSink
from tests.conftest import add_member

GOOD = ImageHeader(format="jpeg", width=64, height=48, route=Route.DALI)


@dataclass(frozen=True)
class Item:
    """One sample to write: its score (NaN: not scored, for `status` and `message`), and its json."""

    key: str
    score: float
    status: Status = Status.OK
    message: str = ""
    json: dict[str, Any] | None = None
    image: bytes | None = None


def flat_jpeg(score: float) -> bytes:
    """A small picture whose brightness encodes the score."""
    level = int(np.clip(score * 25, 0, 255)) if score == score else 0
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (level, 128, 255 - level)).save(buffer, "JPEG")
    return buffer.getvalue()


def make_output(
    root: Path,
    shards: dict[str, Sequence[Item]],
    cut: float = 5.0,
    heads: Sequence[str] = ("laion-v2",),
    record: dict[str, Any] | None = None,
    other_head: Callable[[float], float] = lambda score: score * 100,
    columns: Sequence[str] = ("lang",),
) -> Path:
    """Tars below `root`/in, and what a run with these scores writes below `root`/out, which is returned."""
    output = root / "out"
    planned = []
    for index, (name, items) in enumerate(shards.items()):
        path = root / "in" / f"{name}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for item in items:
                add_member(tar, f"{item.key}.jpg", item.image or flat_jpeg(item.score))
                if item.json is not None:
                    add_member(tar, f"{item.key}.json", json.dumps(item.json).encode())
        planned.append(Shard(index=index, name=name, kind="tar", source=str(path)))
    with ShardSink(output, heads, Threshold(raw=cut).keep, columns=columns) as sink:
        for shard in planned:
            sink.write(_batch(shard, list(shards[shard.name]), heads, other_head))
    (output / "run.json").write_text(json.dumps(record or default_record(cut, heads)))
    return output


def default_record(cut: float, heads: Sequence[str]) -> dict[str, Any]:
    return {
        "identity": {"min_raw": cut, "heads": list(heads), "input": ["in"], "encoder": "ViT-L-14"},
        "config": {"model": {"weights": "openai", "heads": list(heads)}},
        "weights": [{"name": "clip", "sha256": "ab" * 32}],
        "environment": {"gpu": None, "packages": {"torch": "2.11"}},
    }


def _batch(
    shard: Shard, items: list[Item], heads: Sequence[str], other_head: Callable[[float], float]
) -> ScoredBatch:
    found = list(read_shards([shard]))
    samples = tuple(one for one in found if isinstance(one, Sample))
    ended = tuple(one for one in found if isinstance(one, ShardEnd))
    headers = tuple(
        GOOD
        if item.status is Status.OK
        else ImageHeader(
            format="", width=0, height=0, route=Route.NOBODY, status=item.status, message=item.message
        )
        for item in items
    )
    first = np.array([item.score for item in items], np.float32).reshape(len(samples))
    others = [np.array([other_head(item.score) for item in items], np.float32) for _ in heads[1:]]
    encoded = EncodedBatch(samples=samples, headers=headers, ended=ended)
    return ScoredBatch(encoded=encoded, headers=headers, scores_RH=np.stack([first, *others], axis=1))


def scores_of(output: Path) -> np.ndarray:
    """Every score below `output`, NaN where there is none."""
    tables = [pq.read_table(path, columns=["aesthetic_score"]) for path in sorted(output.rglob("*.parquet"))]
    return np.concatenate([table.column(0).to_numpy() for table in tables]).astype(np.float32)
