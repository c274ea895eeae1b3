"""Runs each fuzz target for a few seconds from seeds with good coverage. For longer runs see the targets."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, add_member
from tests.decode.encoded import noise, save

pytest.importorskip("atheris", reason="atheris (in the dev extra) has no wheel for this Python")

SECONDS = int(os.environ.get("DALI_AESTHETIC_FUZZ_SECONDS", "0"))
RUNS = 20_000
"""Number of runs from a fixed seed where no time is set: the same work on every machine."""


def image_seeds() -> list[bytes]:
    formats = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "ICO", "PPM", "AVIF", "TGA", "JPEG2000")
    images = [save(noise(), format) for format in formats]
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    more = [save(noise(), exif=exif), save(noise(mode="CMYK")), save(noise(), progressive=True)]
    return [*images, *more, save(noise(mode="RGBA"), "WEBP"), save(noise(mode="P"), "PNG")]


def tar_seeds() -> list[bytes]:
    seeds = []
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        headers = {"comment": "for all"} if format == tarfile.PAX_FORMAT else None
        with tarfile.open(fileobj=buffer, mode="w", format=format, pax_headers=headers) as tar:
            add_member(tar, "0001.jpg", b"x" * 700)
            if format != tarfile.USTAR_FORMAT:
                add_member(tar, "long/" * 40 + "0002.jpg", b"y")
            add_member(tar, "0002.json", b"{}")
        seeds.append(buffer.getvalue().rstrip(b"\0") + bytes(1024))
    return seeds


@pytest.mark.parametrize(("target", "seeds"), [("fuzz_probe", image_seeds()), ("fuzz_scan", tar_seeds())])
def test_fuzz_targets_find_no_unexpected_exception(target: str, seeds: list[bytes], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            f"tests.fuzz.{target}",
            str(corpus),
            *([f"-max_total_time={SECONDS}"] if SECONDS else [f"-runs={RUNS}", "-seed=1"]),
            "-max_len=8192",
            f"-artifact_prefix={tmp_path}/",
            # The peak that libFuzzer reads is inherited from the test run: limit single pieces instead.
            "-rss_limit_mb=0",
            "-malloc_limit_mb=512",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=SECONDS + 240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None, done.stderr[-3000:]
    assert int(runs[1]) > 1000
    assert len(list(corpus.iterdir())) > len(seeds), "new code was reached, so the target is instrumented"
