"""A memory budget holds, whatever the size of the images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import write_shard
from tests.faults.runs import MODEL, Command, Zygote, peak_anonymous_mb

SIDE, NUM_TARS, BUDGET_GB = 4096, 24, 0.25
IMAGE_MB = SIDE * SIDE * 3 / 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars with one BMP of 50 MB each, over a gigabyte in all and 50 MB of disk."""
    folder = tmp_path_factory.mktemp("large")
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "noise.bmp")
    write_shard(folder / "00.tar", {"a": (folder / "noise.bmp").read_bytes()})
    (folder / "noise.bmp").unlink()
    for index in range(1, NUM_TARS):
        os.link(folder / "00.tar", folder / f"{index:02d}.tar")
    return folder


def run(zygote: Zygote, source: str, output: Path, budget_gb: float) -> Command:
    arguments = ("run", "--input", source, "--output", output, *MODEL, "--memory-budget", budget_gb)
    return zygote.start(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_images_of_50_mb_stay_within_the_budget(
    zygote: Zygote, large: Path, tmp_path: Path, scheme: str
) -> None:
    source = f"{scheme}{large}/{{00..{NUM_TARS - 1:02d}}}.tar"
    command = run(zygote, source, tmp_path / "out", BUDGET_GB)
    peak = peak_anonymous_mb(command)
    assert command.wait() == 0, command.text
    # The budget; one image in the reader's hand, in parts and whole; two being decoded, each in a buffer of
    # the library's, as stored pixels and as RGB; and what the libraries need. Without a limit: 1,800 MB.
    assert peak < BUDGET_GB * 1024 + 8 * IMAGE_MB + 500
