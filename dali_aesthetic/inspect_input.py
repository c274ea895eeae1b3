"""A survey of an input from some of its shards: keys, members, formats, sizes. Nothing is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dali_aesthetic.decode.batches import check
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.shards.scan import TarDamage, scan_tar
from dali_aesthetic.types import Buffer, Sample, ShardEnd

_FIRST_SAMPLES = 5


@dataclass(slots=True)
class Survey:
    """Counts and quantiles over the shards that were read, which may be fewer than `num_shards`."""

    num_shards: int
    num_read: int
    samples_per_shard: dict[str, int] = field(default_factory=dict)
    first: list[dict[str, Any]] = field(default_factory=list)
    extensions: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    kilobytes: dict[str, float] = field(default_factory=dict)
    short_side: dict[str, float] = field(default_factory=dict)
    damage: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        return sum(self.samples_per_shard.values())

    @property
    def estimated_samples(self) -> int:
        """The samples of the whole input, if all shards are like those that were read."""
        return round(self.num_samples / max(self.num_read, 1) * self.num_shards)

    def as_dict(self) -> dict[str, Any]:
        # Not dataclasses.asdict: it rebuilds a Counter from its items, which counts the items.
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain = {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}
        return plain | {"estimated_samples": self.estimated_samples}


def survey(
    inputs: str | Path | Sequence[str | Path], max_shards: int, *, follow_links: bool = False
) -> Survey:
    """Read the first, the last and evenly spaced shards between, `max_shards` at most.

    Raises InputError where `inputs` name nothing to read.
    """
    shards = plan_shards(inputs, follow_links=follow_links)
    places = np.linspace(0, len(shards) - 1, min(max_shards, len(shards))).round().astype(int)
    some = [shards[place] for place in places]
    found = Survey(num_shards=len(shards), num_read=len(some))
    kilobytes: list[float] = []
    short_sides: list[int] = []
    for item in read_shards(some):
        if isinstance(item, ShardEnd):
            _note_end(found, item)
        else:
            _note_sample(found, item, kilobytes, short_sides)
    found.kilobytes, found.short_side = _quantiles(kilobytes), _quantiles(short_sides)
    return found


def _note_end(found: Survey, end: ShardEnd) -> None:
    found.samples_per_shard.setdefault(end.shard.name, 0)
    if end.error or end.damage:
        found.damage[end.shard.name] = end.error or end.damage
    if warnings := [*end.shard.warnings, *end.warnings]:
        found.warnings[end.shard.name] = warnings


def _note_sample(found: Survey, sample: Sample, kilobytes: list[float], short_sides: list[int]) -> None:
    name = sample.shard.name
    found.samples_per_shard[name] = found.samples_per_shard.get(name, 0) + 1
    header = check(sample, Limits())
    found.statuses[header.status.value] += 1
    found.formats[header.format or "(none)"] += 1
    members = _members(sample.entries)
    found.extensions.update(member["name"].rsplit("/", 1)[-1].partition(".")[2] for member in members)
    if sample.image is not None:
        kilobytes.append(len(sample.image) / 1e3)
    if header.width:
        short_sides.append(min(header.width, header.height))
    if len(found.first) < _FIRST_SAMPLES:
        size = f"{header.width}x{header.height}" if header.width else ""
        found.first.append({"key": sample.key, "format": header.format, "size": size, "members": members})


def _members(entries: Sequence[Buffer]) -> list[dict[str, Any]]:
    """Names and sizes of the members in a sample's tar entries."""
    try:
        return [
            {"name": member.name, "bytes": member.size}
            for member in scan_tar(b"".join(bytes(entry) for entry in entries))
            if member.is_file
        ]
    except TarDamage:
        return []


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    shares = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: round(float(np.quantile(values, share)), 1) for name, share in shares.items()}
