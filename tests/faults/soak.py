"""Soak test with bad input: memory stays flat and throughput stays up. `python -m tests.faults.soak`.

One shard of images, 5% of them bad in five ways, is linked under many names, so that a
run is as long as one likes without the disk. Memory is the process's own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tests.conftest import jpeg, write_shard
from tests.faults.runs import MODEL, Command, Zygote, anonymous_mb, noise

BAD_EVERY = 20
PER_SHARD = 400


@dataclass(frozen=True)
class Soak:
    """The result. `growth_mb` is the fitted rise of memory from the first quarter to the end,
    `noise_mb` the distance of single readings from that line."""

    num_images: int
    clean_images_per_second: float
    bad_images_per_second: float
    peak_mb: float
    growth_mb: float
    noise_mb: float

    @property
    def throughput_ratio(self) -> float:
        """Rate at 5% bad input over the rate of clean input."""
        return self.bad_images_per_second / self.clean_images_per_second


def bad_image(good: bytes, index: int) -> bytes:
    """A truncated, empty, non-image, unknown or damaged file, in turn."""
    half = len(good) // 2
    damaged = good[:half] + bytes(len(good) // 8) + good[half + len(good) // 8 :]
    return (good[:half], b"", b"<html>404</html>" * 20, b"GIF89a" + good[6:], damaged)[index % 5]


def make_input(folder: Path, num_shards: int, bad: bool) -> Path:
    """`num_shards` names of one shard of images of about 20 KB."""
    images = {}
    for i in range(PER_SHARD):
        good = jpeg(noise(96 + i % 64, i).resize((320 + i % 64, 256)), 80)
        images[f"{i:05d}"] = bad_image(good, i // BAD_EVERY) if bad and i % BAD_EVERY == 0 else good
    first = write_shard(folder / "00000.tar", images)
    for index in range(1, num_shards):
        os.link(first, folder / f"{index:05d}.tar")
    return folder


def measure(zygote: Zygote, source: Path, output: Path) -> tuple[float, list[tuple[float, float]]]:
    """Images per second of the loop, and (seconds, MB) readings while it ran."""
    # Clean and bad input keep the same samples apart from the bad ones: the sink has the same work.
    command = zygote.start("run", "--input", source, "--output", output, *MODEL, "--quarantine")
    readings = _watch(command)
    if code := command.wait():
        raise RuntimeError(f"exit code {code}:\n{command.text}")
    lines = (output / "timing.jsonl").read_text().splitlines()
    timings = [json.loads(line) for line in lines]
    shutil.rmtree(output)
    # From the first commit on: the first batch also warms up.
    seconds = timings[-1]["seconds"] - timings[0]["seconds"]
    return sum(one["samples"] for one in timings[1:]) / seconds, readings


def _watch(command: Command) -> list[tuple[float, float]]:
    start, readings = time.monotonic(), []
    while command.poll() is None:
        if (now := anonymous_mb(command)) is not None:
            readings.append((time.monotonic() - start, now))
        time.sleep(0.05)
    return readings


def soak(zygote: Zygote, folder: Path, num_shards: int) -> Soak:
    """Runs over `num_shards` shards of clean and of bad input."""
    rates = {}
    for name in ("clean", "bad"):
        source = make_input(folder / name, num_shards, name == "bad")
        rates[name], readings = measure(zygote, source, folder / f"{name}-out")
    # The first quarter fills caches and pools, the last moments tear down.
    settled = np.array(readings[len(readings) // 4 : -3])
    slope, start = np.polyfit(settled[:, 0], settled[:, 1], 1)
    return Soak(
        num_images=num_shards * PER_SHARD,
        clean_images_per_second=round(rates["clean"], 1),
        bad_images_per_second=round(rates["bad"], 1),
        peak_mb=round(float(np.max(settled[:, 1])), 1),
        growth_mb=round(float(slope * (settled[-1, 0] - settled[0, 0])), 1),
        noise_mb=round(float(np.std(settled[:, 1] - (slope * settled[:, 0] + start))), 1),
    )


def main() -> int:
    """Prints the result as JSON; exit code 1 where memory grew or throughput fell."""
    parser = argparse.ArgumentParser(description="Soak test: memory and throughput at 5% bad input.")
    parser.add_argument("--shards", type=int, default=500, help=f"shards of {PER_SHARD} images (500)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        zygote = Zygote(folder)
        result = soak(zygote, folder, arguments.shards)
        zygote.close()
    print(json.dumps(asdict(result) | {"throughput_ratio": round(result.throughput_ratio, 3)}, indent=2))
    return 0 if result.throughput_ratio >= 0.8 and result.growth_mb <= 3 * result.noise_mb + 10 else 1


if __name__ == "__main__":
    sys.exit(main())
