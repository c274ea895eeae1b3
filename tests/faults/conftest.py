"""A process that starts runs, an input with bad images, and the output of an undisturbed run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import jpeg, snapshot, write_shard
from tests.faults.runs import Job, Zygote, noise


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of 40 small images, one in eight of them bad."""
    folder = tmp_path_factory.mktemp("source")
    for shard in range(4):
        images = {f"{shard}{i:03d}": jpeg(noise(48 + i, 100 * shard + i)) for i in range(40)}
        for i, key in enumerate(list(images)[::8]):
            images[key] = (images[key][:300], b"", b"GIF89a", b"no image at all", images[key])[i]
        write_shard(folder / f"{shard:05d}.tar", images)
    return folder


@pytest.fixture(scope="session")
def job(zygote: Zygote, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The four shards and the output of an undisturbed run."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    start = time.monotonic()
    command = Job(zygote, source, {}).start(output)
    assert command.wait() == 0, command.text
    seconds = time.monotonic() - start
    expected = snapshot(output)
    assert sum(name.startswith("shards/") for name in expected) == 4
    return Job(zygote, source, expected, seconds)
