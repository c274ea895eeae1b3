"""A full disk, a file size limit, an output that can't be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.faults.runs import Job, assert_nothing_torn, hidden_files


@pytest.mark.parametrize("kilobytes", [16, 64, 300])
def test_a_full_disk_ends_the_run_and_tears_nothing(job: Job, tmp_path: Path, kilobytes: int) -> None:
    """Only that process sees the small disk, so its files are copied out before it ends."""
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    faults = [f"disk:{disk}:{kilobytes << 10}", f"copy-at-exit:{disk}/out>{copy}:0"]
    command = job.start(disk / "out", faults=faults)
    code = command.wait()
    if "can't mount a small disk here" in command.text:
        pytest.skip("no right to mount a tmpfs")
    assert code == 1, command.text
    assert f"{os.strerror(errno.ENOSPC)} (free some space, then " in " ".join(command.text.split())
    assert str(disk / "out") in "".join(command.text.split())
    assert hidden_files(copy) == []
    assert_nothing_torn(job, copy)
    job.finish(copy)


@pytest.mark.parametrize("num_bytes", [3000, 40_000])
def test_a_file_that_may_not_grow_ends_the_run_and_tears_nothing(
    job: Job, tmp_path: Path, num_bytes: int
) -> None:
    """Stands for a quota or a file system's size limit; needs no privileges."""
    output = tmp_path / "out"
    command = job.start(output, faults=[f"file-limit:-:{num_bytes}"])
    assert command.wait() == 1, command.text
    assert os.strerror(errno.EFBIG) in command.text
    assert "out/shards/" in "".join(command.text.split())
    assert hidden_files(output) == []
    assert_nothing_torn(job, output)
    job.finish(output)


@pytest.mark.parametrize("place", ["", "shards", "scores", "stats"])
def test_an_output_that_cant_be_a_folder_is_named(job: Job, tmp_path: Path, place: str) -> None:
    """Also tests a root user, whom permissions don't stop."""
    output = tmp_path / "out"
    if place:
        output.mkdir()
    (output / place).touch()
    command = job.start(output)
    assert command.wait() in (1, 2), command.text
    assert str(output / place) in "".join(command.text.split())
    assert "Traceback" not in command.text
    assert "[Errno" not in command.text
    assert "a file is where a folder has to be" in " ".join(command.text.split())
    (output / place).unlink()
    job.finish(output)


def test_a_read_only_output_is_named(job: Job, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = job.start(disk / "out", faults=[f"read-only:{disk}:0"])
    code = command.wait()
    if "can't mount a small disk here" in command.text:
        pytest.skip("no right to mount a tmpfs")
    assert code == 1, command.text
    assert f"{os.strerror(errno.EROFS)} (choose a place that can be written)" in " ".join(
        command.text.split()
    )
    assert str(disk / "out") in "".join(command.text.split())
