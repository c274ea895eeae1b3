"""Where scaling bends: clusters of growing size under each thing that can hold them back, simulated.

Nothing here is measured but the rate of one worker, which comes from the package's `rates.json`; how often
workers fail, how many are slow and how much shards differ are assumptions, and the result says them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.cluster import Cluster, Outcome, simulate
from benchmarks.record import typed_command
from dali_aesthetic.cost import Rate

WORKERS = (256, 1024, 4096, 8192, 16_384)
QUICK_WORKERS = (16, 64, 256)
SHARDS, QUICK_SHARDS = 1_000_000, 4_000
STORAGE_GB_S, HANDOUTS_PER_S = 500.0, 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What every case shares; sizes are those of img2dataset's usual shards."""

    images_per_shard: int = 10_000
    image_kb: float = 100.0
    shard_spread: float = 0.2
    slow_share: float = 0.02
    slow_speed: float = 0.5
    hours_between_failures: float = 500.0
    restart_seconds: float = 120.0

    def cluster(self, images_per_second: float, shards: int) -> Cluster:
        """One worker of that rate; cases replace what they are about."""
        return Cluster(
            workers=1,
            shards=shards,
            shard_seconds=self.images_per_shard / images_per_second,
            shard_gb=self.images_per_shard * self.image_kb / 1e6,
            shard_spread=self.shard_spread,
            slow_share=self.slow_share,
            slow_speed=self.slow_speed,
            hours_between_failures=self.hours_between_failures,
            restart_seconds=self.restart_seconds,
        )

    def __str__(self) -> str:
        return (
            f"shards of {self.images_per_shard:,} images of {self.image_kb:g} KB; {100 * self.slow_share:g}% "
            f"of the workers at {self.slow_speed:g} of the speed; a worker fails every "
            f"{self.hours_between_failures:g} hours and is back after {self.restart_seconds:g} s; shards "
            f"differ by {100 * self.shard_spread:g}%"
        )


def cases(base: Cluster) -> dict[str, Cluster]:
    """What is compared, by what it is called."""
    return {
        "dynamic hand-out": base,
        "static split": replace(base, static=True),
        f"dynamic, storage of {STORAGE_GB_S:g} GB/s": replace(base, storage_gb_s=STORAGE_GB_S),
        f"dynamic, {HANDOUTS_PER_S:g} hand-outs a second": replace(base, handouts_per_s=HANDOUTS_PER_S),
    }


def sweep(
    rate: Rate, assumptions: Assumptions, shards: int, sizes: Sequence[int], seed: int = 0
) -> list[dict[str, Any]]:
    """A row for each case and size, in the common format of result files."""
    base = replace(assumptions.cluster(rate.images_per_second, shards), seed=seed)
    rows = []
    for case, cluster in cases(base).items():
        for workers in sizes:
            outcome = simulate(replace(cluster, workers=workers))
            rows.append(_row(case, workers, outcome, assumptions.images_per_shard, rate))
            print(f"  {rows[-1]['name']:<50} {rows[-1]['median']:>14,.0f} images/s", flush=True)
    return rows


def write_simulation(
    folder: Path, gpu: str, rate: Rate, shards: int, sizes: Sequence[int], seed: int = 0
) -> Path:
    """The result file of one sweep; its path."""
    assumptions, date = Assumptions(), time.strftime("%Y-%m-%d")
    rows = sweep(rate, assumptions, shards, sizes, seed)
    content = {
        "theme": "simulation",
        "date": date,
        "command": typed_command(),
        "machine": {"hardware": f"simulated workers, each as fast as one {rate.hardware}"},
        "settings": {"shards": shards, "seed": seed, "images_per_second_of_a_worker": rate.images_per_second},
        "note": f"{shards:,} {assumptions}; a worker's rate is from {rate.source}",
        "rows": rows,
        "skipped": [],
    }
    path = folder / f"simulation_{gpu}_{date}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _row(case: str, workers: int, outcome: Outcome, images_per_shard: int, rate: Rate) -> dict[str, Any]:
    if set(outcome.done) != {1}:
        raise RuntimeError(f"{case}, {workers} workers: not every shard was done exactly once")
    images_per_second = round(images_per_shard * outcome.shards_per_second, 1)
    ideal = workers * rate.images_per_second
    return {
        "name": f"{case}, {workers} workers",
        "unit": "images/s",
        "median": images_per_second,
        "min": images_per_second,
        "max": images_per_second,
        "repeats": 1,
        "limit": round(ideal, 1),
        "of_limit": round(images_per_second / ideal, 4),
        "case": case,
        "workers": workers,
        "hours": round(outcome.seconds / 3600, 3),
        "failures": outcome.failures,
        "lost_share": round(outcome.lost_seconds / max(outcome.busy_seconds, 1e-9), 6),
    }
