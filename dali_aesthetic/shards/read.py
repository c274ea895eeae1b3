"""Shards in, samples out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dali_aesthetic.shards.buffer import DEFAULT_LIMITS, ReadLimits
from dali_aesthetic.shards.folder import read_folder
from dali_aesthetic.shards.parquet import read_parquet
from dali_aesthetic.shards.tar import read_tar
from dali_aesthetic.types import Sample, Shard, ShardEnd

_READERS = {"tar": read_tar, "folder": read_folder, "parquet": read_parquet}


def read_shards(shards: Iterable[Shard], limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[Sample | ShardEnd]:
    """Yields each shard's samples in their order, then exactly one ShardEnd for it.

    Never raises for what a shard holds: a bad sample has a status, a damaged or unreadable shard says so in
    its ShardEnd. The samples' buffers may be views of mapped files; they stay valid while referenced.
    """
    for shard in shards:
        yield from _READERS[shard.kind](shard, limits)
