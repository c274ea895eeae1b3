"""Members whose names share what comes before their first dot: webdataset's rule makes them one sample."""

from __future__ import annotations

import time
from pathlib import Path

from dali_aesthetic.shards.folder import tar_header
from dali_aesthetic.types import Status
from tests.shards.tar_factory import JPEG, PNG, pack, read_bytes


def test_images_that_share_what_comes_before_the_first_dot_are_one_sample_and_a_warning(
    tmp_path: Path,
) -> None:
    members = [
        ("v1.0_1.jpg", JPEG),
        ("v1.0_2.jpg", PNG),
        ("v1.txt", b"text"),
        ("d.seg.png", PNG),
        ("d.jpg", JPEG),
    ]
    samples, end = read_bytes(pack(members), tmp_path)
    assert [(s.key, bytes(s.image or b"")) for s in samples] == [("v1", JPEG), ("d", JPEG)]
    assert end.warnings == ("keys (up to a name's first dot) of several images, one scored: 1 (first: 'v1')",)


def test_a_sample_of_many_members_takes_time_in_proportion(tmp_path: Path) -> None:
    """As do photos named `v1.0_000001.jpg`, which all have the key `v1`."""
    content = b"".join(tar_header(f"v1.0_{index:06d}.txt", 0) for index in range(20_000)) + bytes(1024)
    start = time.perf_counter()
    samples, _ = read_bytes(content, tmp_path)
    assert [s.status for s in samples] == [Status.MISSING_IMAGE]
    assert time.perf_counter() - start < 3
