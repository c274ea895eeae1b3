"""Outputs of runs, made without a model: real tars through the real sink."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.write.scored import JPEG, run, shard_of

RECORD = {"identity": {"min_raw": 5.0}, "config": {}, "weights": [], "environment": {}}


def make_input(path: Path, samples: Iterable[tuple[str, dict[str, Any]]]) -> Path:
    """A tar with a jpg and a json of these fields for each key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for key, fields in samples:
            for suffix, data in (("jpg", JPEG + key.encode()), ("json", json.dumps(fields).encode())):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def make_run(folder: Path, shards: dict[str, Sequence[tuple[str, dict[str, Any]]]]) -> Path:
    """The output of a run over these shards in `folder/in`; samples whose key ends in 5 to 9 are kept."""
    paths = {name: make_input(folder / "in" / f"{name}.tar", samples) for name, samples in shards.items()}
    output = folder / "out"
    run(output, [shard_of(path, index, name) for index, (name, path) in enumerate(paths.items())])
    record = {**RECORD, "config": {"input": [str(folder / "in")]}}
    (output / "run.json").write_text(json.dumps(record))
    return output


def uid(number: int) -> str:
    """32 hexadecimal digits that differ in both halves, in another order than the numbers."""
    return f"{(number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128:032x}"


def many(num_shards: int, per_shard: int) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Shards `00000` and up in two folders, keys that say where they are from."""
    return {
        f"{'ab'[s % 2]}/{s:05d}": [
            (f"{s:05d}{i:04d}", {"caption": f"of {s} {i}", "uid": uid(1000 * s + i)})
            for i in range(per_shard)
        ]
        for s in range(num_shards)
    }


def entries(tar: Path) -> bytes:
    """A tar's bytes without its end marker."""
    return tar.read_bytes()[:-1024]
