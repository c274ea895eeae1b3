"""The scoring module traced, frozen and kept in one portable file: pixels in, scores out, no Python.

torch calls `torch.jit` deprecated and keeps it working (2.14 does); whatever succeeds it takes this file's
place behind `Backend`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dali_aesthetic.score.clip import VisionTower, check_pixels
from dali_aesthetic.score.fast.module import DTYPES, ScoringModule
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.spec import TowerSpec

_METADATA_FILE = "dali_aesthetic.json"
_FORMAT = 1
_WARM_UP_CALLS = 3
"""The profiling executor watches two calls and compiles its kernels in the third."""


class TorchScriptBackend:
    """See `Backend`. Build it with `build` or `load`."""

    name = "torchscript"

    def __init__(
        self, traced: torch.jit.ScriptModule, spec: TowerSpec, head_names: tuple[str, ...], precision: str
    ) -> None:
        self.spec = spec
        self.head_names = head_names
        self.precision = precision
        self._traced = traced

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend`."""
        check_pixels(images_NHWC, self.spec)
        with torch.inference_mode():
            scores_NH, embeddings_ND = self._traced(images_NHWC)
        return scores_NH, embeddings_ND

    def warm_up(self, batch_size: int, device: torch.device) -> TorchScriptBackend:
        """Have the kernels for batches of this size compiled now, on a GPU. Returns itself."""
        if device.type == "cuda":
            images_NHWC = _example(self.spec, batch_size, device)
            for _ in range(_WARM_UP_CALLS):
                self(images_NHWC)
            torch.cuda.synchronize(device)
        return self

    def export(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write the module with its metadata to `path`, atomically.

        `identity` (JSON) names what the scores depend on beside the spec, the heads' names and the
        precision: the hashes of the weights. `load` asks for the same.
        """
        extra = {_METADATA_FILE: json.dumps(self._metadata(identity), sort_keys=True)}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with _deprecation_silenced():
                torch.jit.save(self._traced, str(temporary), _extra_files=extra)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _metadata(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "spec": dataclasses.asdict(self.spec),
            "heads": list(self.head_names),
            "precision": self.precision,
            "identity": dict(identity),
        }


def build(
    tower: VisionTower, heads: HeadBank, device: torch.device, precision: str, batch_size: int
) -> TorchScriptBackend:
    """Trace and freeze; compiled for `batch_size`, correct for any."""
    module = ScoringModule(tower, heads, DTYPES[precision]).to(device)
    with _deprecation_silenced(), torch.no_grad():
        example = _example(tower.spec, batch_size, device)
        traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(traced)
    return TorchScriptBackend(frozen, tower.spec, heads.names, precision).warm_up(batch_size, device)


def load(
    path: Path,
    spec: TowerSpec,
    head_names: tuple[str, ...],
    precision: str,
    identity: Mapping[str, Any],
    device: torch.device,
) -> TorchScriptBackend:
    """The backend that `export` wrote. The file must be one you trust: it is a program.

    Raises ValueError for a file that isn't an export, or of anything else than what is asked for.
    """
    files = {_METADATA_FILE: ""}
    try:
        with _deprecation_silenced():
            traced = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location=device, _extra_files=files
            )
    except RuntimeError as error:
        raise ValueError(f"{path} is not an exported scoring module: {error}") from error
    if not files[_METADATA_FILE]:
        raise ValueError(f"{path} is TorchScript, but not an exported scoring module: it has no metadata")
    backend = TorchScriptBackend(traced, spec, head_names, precision)
    found = json.loads(files[_METADATA_FILE])
    # Through JSON, as the file's went: tuples become lists.
    wanted = json.loads(json.dumps(backend._metadata(identity)))
    if found != wanted:
        differing = [k for k in sorted({*found, *wanted}) if found.get(k) != wanted.get(k)]
        details = "; ".join(f"{k} is {found.get(k)}, not {wanted.get(k)}" for k in differing)
        raise ValueError(f"{path} holds another scoring module: {details}. Export it again")
    return backend


def _example(spec: TowerSpec, batch_size: int, device: torch.device) -> Tensor:
    size = spec.image_size
    return torch.full((batch_size, size, size, 3), 127, dtype=torch.uint8, device=device)


@contextmanager
def _deprecation_silenced() -> Iterator[None]:
    """Hide torch's notes that `torch.jit` is deprecated, and nothing else."""
    with warnings.catch_warnings():
        # A FutureWarning or a DeprecationWarning, depending on the function and torch's version.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)", Warning)
        yield
