"""From inputs to samples: their order, their keys and their original bytes."""

from dali_aesthetic.shards.listing import InputError
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.read import read_shards

__all__ = ["InputError", "plan_shards", "read_shards"]
