"""Paths and URLs as text."""

from __future__ import annotations

import pytest

from dali_aesthetic.stores.location import fixed_root


@pytest.mark.parametrize(
    ("pattern", "root"),
    [
        ("data/*.tar", "data"),
        ("data/a*/b/{0..9}.tar", "data"),
        ("data/b/{0..9}/*.tar", "data/b"),
        ("[ab].tar", ""),
        ("/*.tar", "/"),
        ("data", "data"),
        ("data/0.tar", "data/0.tar"),
        ("s3://bucket/a/?/0.tar", "s3://bucket/a"),
        ("s3://bucket/*.parquet", "s3://bucket"),
    ],
)
def test_a_pattern_lies_below_its_first_plain_folders(pattern: str, root: str) -> None:
    assert fixed_root(pattern) == root
