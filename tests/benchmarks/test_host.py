"""The host theme on a handful of images: every step counts them, the loop writes what it should."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from benchmarks.datasets import DatasetSpec, make_dataset
from benchmarks.host import limited_to, loop_work, measure_host, profile_host
from benchmarks.results import Record, read_result
from tests.conftest import read_members

SPEC = DatasetSpec(short_side=48, distinct=20, num_shards=2)


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(tmp_path_factory.mktemp("host"), SPEC, 1)


def test_the_theme_writes_every_row(pattern: str, tmp_path: Path) -> None:
    record = Record("host", tmp_path, torch.device("cpu"), {})
    before = os.sched_getaffinity(0)
    measure_host(record, pattern, tmp_path / "work", batch_size=16, repeats=1, num_cores=1)
    assert os.sched_getaffinity(0) == before
    result = read_result(record.path)
    steps = ["scan", "scan + check", "scan + check + feed"]
    assert [row.name for row in result.rows[:3]] == steps
    assert [row.name for row in result.rows[3:]] == [f"host loop, {share}% kept" for share in (0, 25, 100)]
    assert all(row.median > 0 and row.cpu_us for row in result.rows)
    assert result.content["cores_used"] == 1


@pytest.mark.parametrize("kept", [0.0, 0.25, 1.0])
def test_the_loop_goes_through_all_samples_and_keeps_its_share(
    pattern: str, tmp_path: Path, kept: float
) -> None:
    assert loop_work(pattern, tmp_path, 16, kept)() == SPEC.num_images
    tars = sorted((tmp_path / "host-output" / "shards").glob("*.tar"))
    members = [member for tar in tars for member in read_members(tar)]
    share = len(members) / 3 / SPEC.num_images
    assert share == kept if kept in (0.0, 1.0) else 0.05 < share < 0.5


def test_the_profile_names_functions_and_their_time(pattern: str, tmp_path: Path) -> None:
    text = profile_host(pattern, tmp_path, 16, lines=5)
    assert text.startswith("40 samples, ")
    assert len(text.splitlines()) == 6
    assert " us " in text.splitlines()[1]


def test_cores_are_given_back_after_a_failure() -> None:
    before = os.sched_getaffinity(0)
    seen = []
    with suppress(RuntimeError), limited_to(1) as cores:
        seen += [cores, len(os.sched_getaffinity(0))]
        raise RuntimeError
    assert seen == [1, 1]
    assert os.sched_getaffinity(0) == before
