"""Samples of shards, whatever their kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dali_aesthetic.shards.folder import read_folder
from dali_aesthetic.shards.opened import DEFAULT_LIMITS, ReadLimits
from dali_aesthetic.shards.parquet import read_parquet
from dali_aesthetic.shards.tar import read_tar
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.stores.read_ahead import ReadAhead
from dali_aesthetic.types import Sample, Shard, ShardEnd

_READERS = {"folder": read_folder, "parquet": read_parquet}


def read_shards(shards: Iterable[Shard], limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[Sample | ShardEnd]:
    """Yields each shard's samples in their order, then exactly one ShardEnd for it.

    Never raises for a shard's content: a bad sample has a status, a damaged or unreadable shard an error in
    its ShardEnd. The samples' buffers may be views of the parts that were read; they stay valid while
    referenced. Tars of a store are read ahead, across the borders of shards.
    """
    with ReadAhead(limits.read_ahead_bytes) as ahead:
        for shard, opener in ahead.over(shards, _url):
            if shard.kind == "tar":
                yield from read_tar(shard, limits, opener)
            else:
                yield from _READERS[shard.kind](shard, limits)


def _url(shard: Shard) -> str:
    return shard.source if shard.kind == "tar" and is_url(shard.source) else ""
