"""The scoring module exported and compiled ahead of time: one `.pt2` package, made once, loaded in seconds.

It is kept in the cache folder under a name made of all that it depends on: weights, heads, precision, batch
size, torch and the device's kind. TorchScript's successor: no Python runs inside it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dali_aesthetic.score.backends.cache import alone, cache_folder
from dali_aesthetic.score.backends.plain import DTYPES, Scored, ScoringModule, check_compiler, in_batches
from dali_aesthetic.score.clip import VisionTower, check_pixels
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.spec import TowerSpec

_FORMAT = 1


class ExportedBackend:
    """See `Backend`. Batches of another size than the package's are padded to it."""

    name = "export"

    def __init__(
        self, package: Path, spec: TowerSpec, head_names: tuple[str, ...], precision: str, batch_size: int
    ) -> None:
        """Loads the package. Raises RuntimeError (torch's) for a file that is none."""
        self.precision, self.spec, self.head_names = precision, spec, head_names
        self._batch_size = batch_size
        self._run: Callable[[Tensor], list[Tensor]] = torch._inductor.aoti_load_package(str(package))

    def __call__(self, images_NHWC: Tensor) -> Scored:
        """See `Backend`."""
        check_pixels(images_NHWC, self.spec)
        with torch.inference_mode():
            return in_batches(self._score, images_NHWC, self._batch_size)

    def _score(self, images_NHWC: Tensor) -> Scored:
        scores_NH, embeddings_ND = self._run(images_NHWC)
        return scores_NH, embeddings_ND


def build(
    tower: VisionTower, heads: HeadBank, device: torch.device, precision: str, batch_size: int
) -> ExportedBackend:
    """The backend from the cache folder, or exported into it: by one process, while others wait for it.

    Raises ValueError where it has to be exported and there is no C++ compiler, or what it made doesn't run.
    """
    path = package_path(tower, heads, device, precision, batch_size)
    spec, names = tower.spec, heads.names
    if not path.exists():  # a cache that is part of an image can't be written, nor locked
        with alone(path):
            if not path.exists():
                check_compiler(ExportedBackend.name)
                export(ScoringModule(tower, heads, DTYPES[precision]).to(device), path, batch_size)
    return ExportedBackend(path, spec, names, precision, batch_size)


def package_path(
    tower: VisionTower, heads: HeadBank, device: torch.device, precision: str, batch_size: int
) -> Path:
    """Where the package of just this module, batch size, torch and kind of device is kept."""
    identity: dict[str, Any] = {
        "format": _FORMAT,
        "spec": dataclasses.asdict(tower.spec),
        "heads": heads.names,
        # Weights alone don't tell which head is which, nor what lies between their layers.
        "columns": heads.columns,
        "layers": [(head.relus, head.sigmoid) for head in heads.mlps],
        "weights": [_digest(tower), _digest(heads)],
        "precision": precision,
        "batch_size": batch_size,
        "torch": torch.__version__,
        "device": _kind(device),
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / "export"
    folder.mkdir(exist_ok=True)
    return folder / f"{tower.spec.name}-{precision}-{batch_size}-{name}.pt2"


def export(module: ScoringModule, path: Path, batch_size: int) -> None:
    """Compile `module` for `batch_size` images into the package `path`: there whole and tried, or not.

    Raises ValueError for a package that can't be loaded or run on this machine.
    """
    spec = module.tower.spec
    device = module.heads.w_AD.device
    shape = (batch_size, spec.image_size, spec.image_size, 3)
    example_NHWC = torch.full(shape, 127, dtype=torch.uint8, device=device)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # of torch about itself
            program = torch.export.export(module, (example_NHWC,))
            torch._inductor.aoti_compile_and_package(program, package_path=str(temporary))
        run(temporary, device, shape)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _kind(device: torch.device) -> str:
    """What compiled code is made for."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


# FOLDED dali_aesthetic/score/fast/package_trial.py: A package's first batch, in a process of its own: a fault in compiled code ends the process it is in.


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
