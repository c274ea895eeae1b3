"""Scored batches of real tars, without a decoder or a model."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dali_aesthetic.shards import read_shards
from dali_aesthetic.types import (
    EncodedBatch,
    ImageHeader,
    Route,
    Sample,
    ScoredBatch,
    Shard,
    ShardEnd,
    ShardReport,
    Status,
)
from dali_aesthetic.write.sink import ShardSink

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 3 + b"\xff\xd9"
GOOD = ImageHeader(format="jpeg", width=640, height=480, route=Route.DALI)


def make_tar(path: Path, keys: Iterable[str], format: int = tarfile.GNU_FORMAT) -> Path:
    """jpg, json and txt for each key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for key in keys:
            for suffix, data in (
                ("jpg", JPEG + key.encode()),
                ("json", b'{"caption": "of %s", "url": "http://x", "width": 1}' % key.encode()),
                ("txt", b"text"),
            ):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def shard_of(path: Path, index: int = 0, name: str = "") -> Shard:
    return Shard(index=index, name=name or path.stem, kind="tar", source=str(path))


def score(key: str) -> float:
    """The score of a key: its last digit, 0 to 9."""
    return float(key[-1]) if key[-1:].isdigit() else 1.0


def batches(shards: Iterable[Shard], size: int, heads: int = 1) -> Iterator[ScoredBatch]:
    """Batches of `size` items across shard borders, scored by key."""
    items = read_shards(shards)
    while chunk := list(islice(items, size)):
        samples = tuple(item for item in chunk if isinstance(item, Sample))
        ended = tuple(item for item in chunk if isinstance(item, ShardEnd))
        yield scored(
            samples, ended, [score(s.key) if s.status is Status.OK else np.nan for s in samples], heads
        )


def scored(
    samples: tuple[Sample, ...],
    ended: tuple[ShardEnd, ...],
    scores: list[float],
    heads: int = 1,
    headers: tuple[ImageHeader, ...] | None = None,
) -> ScoredBatch:
    headers = headers if headers is not None else (GOOD,) * len(samples)
    columns = [np.array(scores, np.float32) + head for head in range(heads)]
    encoded = EncodedBatch(samples=samples, headers=headers, ended=ended)
    return ScoredBatch(encoded=encoded, headers=headers, scores_RH=np.stack(columns, axis=1))


def at_least_5(raw: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    return raw >= np.float32(5)


def run(output: Path, shards: Iterable[Shard], size: int = 7) -> list[ShardReport]:
    """Writes all shards with one head."""
    with ShardSink(output, ["v2"], at_least_5) as sink:
        reports = [report for batch in batches(shards, size) for report in sink.write(batch)]
        return reports + sink.flush()


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root`, hidden ones too."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }
