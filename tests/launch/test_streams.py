"""Standard streams that are closed, full or left by their reader: the exit code is the work's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.faults.runs import TINY

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
COMMAND = f"{sys.executable} -m dali_aesthetic"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, shards_dir: Path) -> Path:
    """A scored output, by a run that has neither standard output nor standard error."""
    output = tmp_path_factory.mktemp("streams") / "out"
    assert shell(f"{run_into(output, shards_dir)} >&- 2>&- <&-") == (0, "")
    return output


def run_into(output: Path, shards_dir: Path) -> str:
    """The command of a run with a tiny encoder and warnings, which `open_clip` takes from a file."""
    (output.parent / "tiny-vit.json").write_text(json.dumps(TINY))
    (output.parent / "run.py").write_text(
        "import open_clip; from dali_aesthetic.cli import main\n"
        f"open_clip.add_model_config({str(output.parent)!r}); main()\n"
    )
    return (
        f"{sys.executable} {output.parent}/run.py run --input {shards_dir} --output {output} "
        "--encoder tiny-vit --weights random:1 --head random:1 --device cpu --raw-threshold -100 --json"
    )


def shell(line: str) -> tuple[int, str]:
    """The exit code of the first command of the `line`, and all that reached this process."""
    found = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return found.returncode, found.stdout


def test_a_run_without_standard_streams_writes_its_files(scored: Path) -> None:
    """Nothing of a library's messages is in them: no file has the number of a standard stream."""
    assert len(list((scored / "stats").iterdir())) == 3
    assert shell(f"{COMMAND} verify {scored}")[0] == 0


def test_a_run_whose_standard_streams_are_full_ends_with_its_own_exit_code(
    scored: Path, shards_dir: Path
) -> None:
    full = scored.parent / "full"
    assert shell(f"{run_into(full, shards_dir)} > /dev/full 2> /dev/full") == (0, "")
    assert len(list((full / "stats").iterdir())) == 3


@pytest.mark.parametrize(
    ("streams", "code", "printed"),
    [
        ("2>&-", 0, "000"),
        ("2>/dev/full", 0, "000"),
        (">&-", 0, ""),
        (">/dev/full", 1, "error standard output can't be written: No space left on device"),
        (">/dev/full 2>&-", 1, ""),
        ("| true", 141, ""),  # which has ended long before the first key is printed
    ],
)
def test_a_command_that_prints(scored: Path, streams: str, code: int, printed: str) -> None:
    found, text = shell(f"{COMMAND} select --scores {scored} --raw-threshold -100 {streams}")
    assert (found, text[: len(printed)]) == (code, printed)
    assert "Traceback" not in text
    assert "Exception" not in text


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full"])
def test_an_error_without_standard_error_still_is_an_exit_code(streams: str) -> None:
    assert shell(f"{COMMAND} run --input /nowhere.tar --output /tmp/none {streams}") == (2, "")
