"""Standard streams that are closed, full or left by their reader: the exit code is the work's."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, write_shard
from tests.decode.corpus import cases
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


QUIET = """
import faulthandler, os, sys
from dali_aesthetic.launch.streams import keep_streams, quiet_libraries
keep_streams()
faulthandler.enable()
with quiet_libraries() as count:
    os.write(2, b"libpng warning: odd\\nhalf a line")
    print(sys.stderr.isatty(), "ours", file=sys.stderr)
    sys.stdin.readline()
    os.write(2, b", its end\\nlibjpeg: odd\\n")
    print(count(), count(), file=sys.stderr)
    os.write(2, b"terminate called after throwing\\n")
    END
os.write(2, b"after\\n")
"""


def begun(end: str) -> subprocess.Popen[str]:
    """A process within the block, which goes on when a line is written to it."""
    code, pipe = QUIET.replace("END", end), subprocess.PIPE
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stderr=pipe, text=True)


def test_lines_of_libraries_are_counted_and_our_own_shown_at_once() -> None:
    with begun("pass") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "False ours\n", "while the block goes on"
        _, rest = process.communicate("\n", timeout=60)
    assert rest == "3 0\nafter\n"


@pytest.mark.parametrize("end", ["os.abort()", "os.kill(os.getpid(), 9)", "os._exit(3)"])
def test_what_libraries_wrote_before_a_crash_is_shown(end: str) -> None:
    with begun(end) as process:
        _, text = process.communicate("\n", timeout=60)
    assert text.endswith(
        "the last lines that libraries wrote:\nlibpng warning: odd\nhalf a line, its end\nlibjpeg: odd\n"
        "terminate called after throwing\n"
    )
    assert ("Fatal Python error: Aborted" in text) == (process.returncode == -signal.SIGABRT)


def test_a_terminal_stays_one_while_libraries_are_quiet() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", QUIET.replace("END", "pass")]
    subprocess.run(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stderr=theirs, timeout=60, check=True)
    os.close(theirs)
    assert os.read(ours, 1000).startswith(b"True ours")
    os.close(ours)


def test_a_run_counts_what_decoders_write_and_verbose_shows_it(tmp_path: Path) -> None:
    odd = [
        case.image
        for case in cases()
        if case.image and case.name.startswith(("png", "jpeg")) and case.damaged
    ]
    images = {f"{n:03d}": image for n, image in enumerate(odd[::9])}
    for name in ("a", "b"):
        write_shard(tmp_path / "in" / f"{name}.tar", images)

    def run(output: str, *options: str) -> subprocess.CompletedProcess[str]:
        model = [
            "--encoder",
            "ViT-S-32-alt",
            "--weights",
            "random:1",
            "--head",
            "random:1",
            "--device",
            "cpu",
        ]
        places = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / output)]
        command = [
            *COMMAND.split(),
            "run",
            *places,
            *model,
            "--device",
            "cpu",
            "--max-bad-fraction",
            "1",
            *options,
        ]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)

    verbose = run("loud", "--workers", "2", "--verbose").stderr
    shown = [line for line in verbose.splitlines() if "libpng" in line or "Corrupt JPEG" in line]
    assert shown
    assert "decoder libraries" not in verbose
    for options in ((), ("--workers", "2")):
        quiet = run(f"quiet{len(options)}", *options).stderr
        assert "libpng" not in quiet
        assert "Corrupt JPEG" not in quiet
        told = next(line for line in quiet.splitlines() if line.startswith("decoder libraries wrote "))
        assert int(told.split()[3].replace(",", "")) >= len(shown)
        assert told.endswith(" lines; --verbose shows them")
