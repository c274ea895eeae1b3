"""`compact` killed at any step of a commit leaves no torn file, and the same command gives the same bytes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.compact.runs import make_run, many
from tests.conftest import snapshot
from tests.faults.runs import Zygote, assert_same, hidden_files

EVERYWHERE = [
    *(f"die:rename:{count}" for count in range(1, 24)),
    *(f"die-after:rename:{count}" for count in range(1, 24)),
    *(f"die:write:{count}" for count in range(1, 30, 2)),
]
"""Five shards with three files each, two lists, an index for each, the subset file: 23 renames."""
SOME = ["die:rename:1", "die-after:rename:1", "die:rename:3", "die:write:9", "die-after:rename:9"]
SOME += ["die:rename:16", "die-after:rename:16", "die-after:rename:19", "die:rename:23"]
FAULTS = EVERYWHERE if "DALI_AESTHETIC_KILLS" in os.environ else SOME


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("kept"), many(4, 25))


def arguments(source: Path, output: Path) -> list[object]:
    subset = output / "kept.npy"
    size = ("--samples-per-shard", 9)
    return ["compact", source, "--output", output, *size, "--index", "--subset-file", subset]


@pytest.fixture(scope="module")
def expected(zygote: Zygote, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    command = zygote.start(*arguments(source, output))
    assert command.wait() == 0, command.text
    files = snapshot(output)
    assert sum(name.endswith(".tar") for name in files) == 5
    return files


@pytest.mark.parametrize("fault", FAULTS)
def test_compact_killed_at_any_step_resumes_to_the_same_bytes(
    zygote: Zygote, source: Path, expected: dict[str, bytes], tmp_path: Path, fault: str
) -> None:
    output = tmp_path / "out"
    command = zygote.start(*arguments(source, output), faults=[fault])
    assert command.wait() == -signal.SIGKILL, command.text
    whole = {n: content for n, content in snapshot(output).items() if not Path(n).name.startswith(".")}
    assert [name for name, content in whole.items() if expected.get(name) != content] == []
    for name in [Path(name).stem for name in whole if name.startswith("stats/")]:
        assert {f"shards/{name}.tar", f"scores/{name}.parquet"} <= whole.keys()
    again = zygote.start(*arguments(source, output))
    assert again.wait() == 0, again.text
    assert hidden_files(output) == []
    assert_same(snapshot(output), expected)
