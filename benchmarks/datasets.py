"""The shards of a whole benchmark run, each kind made once and kept in one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.dataset import DatasetSpec, make_dataset
from dali_aesthetic.overlap import cpu_count

KINDS = (
    ("baseline", 512),
    ("bad", 512),
    ("progressive-30", 512),
    ("progressive", 512),
    ("baseline", 256),
    ("baseline", 1024),
    ("mixed", 512),
)
"""Kind and pixels of the short side, the usual one first, then by what a cut-off run should still have."""
_TITLES = {"bad": "5% bad", "progressive-30": "30% progressive"}


def title(kind: str, short_side: int) -> str:
    """A kind in the name of a row."""
    return f"{_TITLES.get(kind, kind)}, {short_side} px"


@dataclass(frozen=True, slots=True)
class Datasets:
    """Makes shards on demand below `folder`. `distinct` images of 512 pixels; of others as fits the size."""

    folder: Path
    distinct: int
    num_shards: int

    def make(self, kind: str = "baseline", short_side: int = 512) -> str:
        """The glob of the shards of a kind."""
        spec = self.spec(kind, short_side)
        return make_dataset(self.folder / spec.name, spec, cpu_count())

    def spec(self, kind: str, short_side: int) -> DatasetSpec:
        """Large images are fewer, so that no kind takes much longer than the others."""
        few = short_side > 512 or kind in ("progressive", "mixed")
        distinct = max(32, self.distinct // 2) if few else self.distinct
        return DatasetSpec(short_side=short_side, distinct=distinct, num_shards=self.num_shards, kind=kind)
