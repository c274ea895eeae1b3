"""Runs of the real command line with a tiny encoder, in processes that can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import REPOSITORY, snapshot

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1},
}
MODEL = (
    *("--encoder", "tiny-vit", "--weights", "random:1", "--head", "random:1"),
    *("--device", "cpu", "--num-threads", "1", "--batch-size", "8", "--raw-threshold", "5"),
)


class Command:
    """One run of the command line."""

    def __init__(self, zygote: Zygote, pid: int, log: Path) -> None:
        self._zygote, self.pid, self._log = zygote, pid, log
        self._code: int | None = None
        self.peak_mb = 0.0

    def poll(self) -> int | None:
        """The exit code (minus the signal that killed it), or None while it runs.

        `peak_mb` is its peak of resident memory then, with the pages that it shares with the zygote.
        """
        if self._code is None and (ended := self._zygote.ask({"poll": self.pid})) is not None:
            self._code, self.peak_mb = ended
        return self._code

    def wait(self, timeout: float = 60) -> int:
        """Waits for the end and returns the exit code."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, f"still running after {timeout} s:\n{self.text}"
            time.sleep(0.01)
        return code

    @property
    def text(self) -> str:
        """Everything it printed."""
        return self._log.read_text()


class Zygote:
    """Forks the command line from a process that has everything imported already."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        (folder / "tiny-vit.json").write_text(json.dumps(TINY))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        assert self._answer() == "ready"

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def start(
        self,
        *arguments: object,
        faults: Sequence[str] = (),
        worker_faults: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> Command:
        """Runs `dali-aesthetic ARGUMENTS` with `faults` (see `inject`) in it, others in its workers."""
        self._count += 1
        log = self._folder / f"{self._count}.log"
        log.touch()
        request = {"run": [str(a) for a in arguments], "faults": list(faults), "log": str(log)}
        request["environ"] = dict(environ or {})
        request |= {"configs": str(self._folder), "worker_faults": list(worker_faults)}
        return Command(self, int(self.ask(request)), log)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that starts the others has died"
        return json.loads(line)


def noise(side: int, seed: int) -> Image.Image:
    """An image that compresses badly and is different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@dataclass(frozen=True)
class Job:
    """An input, the expected output bytes of a run over it, and the seconds an undisturbed run takes."""

    zygote: Zygote
    source: Path
    expected: dict[str, bytes]
    seconds: float = 0.0

    def start(
        self,
        output: Path,
        *more: object,
        faults: Sequence[str] = (),
        worker_faults: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> Command:
        """Starts the run into `output`."""
        model = MODEL[:-2] if "--raw-threshold" in more else MODEL
        arguments = ("run", "--input", self.source, "--output", output, *model, *more)
        return self.zygote.start(*arguments, faults=faults, worker_faults=worker_faults, environ=environ)

    def finish(self, output: Path, *more: object) -> Command:
        """Runs the same command again, undisturbed, and compares every byte."""
        command = self.start(output, *more)
        assert command.wait() == 0, command.text
        assert_same(snapshot(output), self.expected)
        return command


def assert_same(got: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Asserts equality without a diff of megabytes on failure."""
    assert sorted(got) == sorted(expected)
    assert [name for name in expected if got[name] != expected[name]] == []


def assert_nothing_torn(job: Job, output: Path) -> None:
    """Every file with a final name is whole, and every shard with stats has all its files."""
    there = snapshot(output)
    visible = {name: content for name, content in there.items() if "/." not in name and name[0] != "."}
    assert [name for name, content in visible.items() if job.expected.get(name) != content] == []
    for name in [Path(name).stem for name in visible if name.startswith("stats/")]:
        assert {f"shards/{name}.tar", f"scores/{name}.parquet"} <= visible.keys()
    if (output / "run.json").exists():
        json.loads((output / "run.json").read_bytes())


def hidden_files(output: Path) -> list[str]:
    """The temporary files and locks that are left."""
    return [name for name in snapshot(output) if Path(name).name.startswith(".")]


def wait_for(condition: Callable[[], bool], command: Command, timeout: float = 60) -> None:
    """Waits until `condition` holds; fails if the command ends first."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert command.poll() is None, command.text
        assert time.monotonic() < deadline, command.text
        time.sleep(0.005)


def peak_anonymous_mb(command: Command) -> float:
    """The peak of the process's private memory until it ends, in MB."""
    peak = 0.0
    while command.poll() is None:
        peak = max(peak, anonymous_mb(command) or 0.0)
        time.sleep(0.01)
    return peak


def anonymous_mb(command: Command) -> float | None:
    """The process's private memory now, without mapped files, in MB; None once it has ended."""
    try:
        lines = Path(f"/proc/{command.pid}/status").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
    return found[0] / 1024 if found else None
