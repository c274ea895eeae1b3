"""A package's first batch, in a process of its own: a fault in compiled code ends the process it is in."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch


def run(package: Path, device: torch.device, shape: Sequence[int]) -> None:
    """Raises ValueError where loading `package` or scoring `shape`, uint8 on `device`, fails."""
    words = [str(package), str(device), *map(str, shape)]
    trial = subprocess.run([sys.executable, "-m", __name__, *words], capture_output=True, text=True)
    if trial.returncode:
        raise ValueError(
            f"backend export: what torch {torch.__version__} compiled doesn't run on this machine "
            f"({_ending(trial)}). A C++ compiler that links its own standard library into what it makes can "
            "be the cause: name another one in CXX, or use --backend auto, or compile"
        )


def _ending(trial: subprocess.CompletedProcess[str]) -> str:
    """How it ended, in a line: the signal, or what it said last."""
    if trial.returncode < 0:
        return f"it ended by {signal.Signals(-trial.returncode).name}"
    return (trial.stderr.strip().splitlines() or [f"exit code {trial.returncode}"])[-1]


def main(package: str, device: str, *shape: str) -> None:
    """Loads the package and scores one batch of zeros."""
    scores = torch._inductor.aoti_load_package(package)
    scores(torch.zeros([int(size) for size in shape], dtype=torch.uint8, device=device))
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
