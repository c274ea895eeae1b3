"""After kill -9 at any moment the same command resumes and ends with the bytes of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import jpeg, snapshot
from tests.faults.runs import Job, Zygote, assert_nothing_torn, hidden_files, noise

KILLS = int(os.environ.get("DALI_AESTHETIC_KILLS", "8"))
"""`make soak` asks for 100."""


def test_a_run_killed_at_random_moments_resumes_to_the_same_bytes(job: Job, tmp_path: Path) -> None:
    seed = int(os.environ.get("DALI_AESTHETIC_SEED", time.time_ns() % 1_000_000))
    moments, kills, output, round_ = random.Random(seed), 0, tmp_path / "out", 0
    while kills < KILLS:
        # A run that reached its end starts again in another folder.
        command = job.start(output)
        time.sleep(moments.uniform(0, 1.3 * job.seconds))
        os.kill(command.pid, signal.SIGKILL)
        if command.wait() == 0:
            job.finish(output)
            round_ += 1
            output = tmp_path / f"out{round_}"
            continue
        kills += 1
        assert_nothing_torn(job, output)
    job.finish(output)


@pytest.mark.parametrize("point", ["die:rename", "die-after:rename", "die:sync", "die:write", "die:link"])
def test_a_run_killed_within_every_commit_resumes_to_the_same_bytes(
    job: Job, tmp_path: Path, point: str
) -> None:
    """Run N dies at its N-th such call, so that every step of a commit is hit."""
    output, count, deaths = tmp_path / "out", 1, 0
    while count <= (40 if KILLS > 8 else 3):
        command = job.start(output, faults=[f"{point}:{count}"])
        if (code := command.wait()) == 0:
            break
        assert code == -signal.SIGKILL, command.text
        deaths += 1
        count += 1
        assert_nothing_torn(job, output)
    assert deaths
    job.finish(output)


@pytest.mark.parametrize("form", ["files", "links"])
def test_a_run_into_files_killed_within_its_commit_resumes_to_the_same_files(
    zygote: Zygote, tmp_path: Path, form: str
) -> None:
    source = tmp_path / "photos"
    (source / "sub").mkdir(parents=True)
    for number in range(12):
        name = f"{'sub/' if number % 3 else ''}{number}"
        (source / f"{name}.jpg").write_bytes(jpeg(noise(48 + number, number)))
        (source / f"{name}.txt").write_text(f"caption {number}")
    options = ("--output-format", form, "--raw-threshold", "-100")
    first = Job(zygote, source, {}).start(tmp_path / "whole", *options)
    assert first.wait() == 0, first.text
    job = Job(zygote, source, snapshot(tmp_path / "whole"))
    assert sum(name.startswith("files/") for name in job.expected) == 24
    for point in ("die:rename", "die-after:rename", "die:sync", "die:link"):
        for count in range(2, 40, 1 if KILLS > 8 else 25):
            output = tmp_path / f"{point}{count}"
            command = job.start(output, *options, faults=[f"{point}:{count}"])
            command.wait()
            there = {name: content for name, content in snapshot(output).items() if "/." not in f"/{name}"}
            assert [name for name, content in there.items() if job.expected.get(name) != content] == []
            if "stats/00000.json" in there:
                assert there.keys() == job.expected.keys() - set(hidden_files(tmp_path / "whole"))
            job.finish(output, *options)
            assert hidden_files(output) == hidden_files(tmp_path / "whole")
