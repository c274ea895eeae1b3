"""From inputs to samples: what there is, in which order, and where its original bytes lie."""

from dali_aesthetic.shards.listing import InputError
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.read import read_shards

__all__ = ["InputError", "plan_shards", "read_shards"]
