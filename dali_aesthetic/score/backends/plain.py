"""Pixels to scores as one module: what every backend computes, and what TorchScript traces."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dali_aesthetic.score.clip import Normalize, VisionTower, check_pixels
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.spec import TowerSpec

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The precisions of the plain backends: what the tower's weights and activations are stored in."""


class ScoringModule(nn.Module):
    """Normalise, embed, score. The tower computes in `dtype`; pixels and heads are always in float32."""

    def __init__(self, tower: VisionTower, heads: HeadBank, dtype: torch.dtype = torch.float32) -> None:
        """Takes the tower over: its weights are converted in place."""
        super().__init__()
        self.normalize = Normalize(tower.spec, dtype)
        self.tower = tower.to(dtype)
        self.heads = heads.float()
        self.requires_grad_(False).eval()

    def forward(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N, H] float32 and embeddings [N, D] in `dtype`, not normalised, of uint8 pixels."""
        embeddings_ND = self.tower(self.normalize(images_NHWC))
        return self.heads(embeddings_ND), embeddings_ND


# FOLDED dali_aesthetic/score/fast/compiled.py: The scoring module by `torch.compile`: compiled when a process starts, from Inductor's cache if warm.


class CompiledBackend:
    """See `Backend`. Batches of another size than the compiled one are padded to it."""

    name = "compile"

    def __init__(
        self, module: ScoringModule, precision: str, batch_size: int, mode: str | None = None
    ) -> None:
        """`mode` is torch.compile's: None, or `max-autotune-no-cudagraphs` to have products tuned too."""
        self.precision = precision
        self.spec = module.tower.spec
        self.head_names = module.heads.names
        self._batch_size = batch_size
        self._compiled = torch.compile(module, dynamic=False, fullgraph=True, mode=mode)

    def __call__(self, images_NHWC: Tensor) -> Scored:
        """See `Backend`."""
        check_pixels(images_NHWC, self.spec)
        with torch.inference_mode():
            return in_batches(self._compiled, images_NHWC, self._batch_size)


def build(
    tower: VisionTower,
    heads: HeadBank,
    device: torch.device,
    precision: str,
    batch_size: int,
    mode: str | None = None,
) -> CompiledBackend:
    """A compiled backend; it compiles when it is first called. Raises ValueError without a C++ compiler."""
    check_compiler(CompiledBackend.name)
    module = ScoringModule(tower, heads, DTYPES[precision]).to(device)
    return CompiledBackend(module, precision, batch_size, mode)


# FOLDED dali_aesthetic/score/fast/eager.py: The reference as a backend: the modules as they are, one kernel per operation.


class EagerBackend:
    """See `Backend`."""

    name = "eager"

    def __init__(self, tower: VisionTower, heads: HeadBank, device: torch.device, precision: str) -> None:
        self.precision = precision
        self.spec = tower.spec
        self.head_names = heads.names
        self._module = ScoringModule(tower, heads, DTYPES[precision]).to(device)

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend`."""
        check_pixels(images_NHWC, self.spec)
        with torch.inference_mode():
            scores_NH, embeddings_ND = self._module(images_NHWC)
        return scores_NH, embeddings_ND


def build_eager(
    tower: VisionTower, heads: HeadBank, device: torch.device, precision: str, batch_size: int
) -> EagerBackend:
    """An eager backend; it takes any batch size."""
    return EagerBackend(tower, heads, device, precision)


# FOLDED dali_aesthetic/score/fast/fixed_batch.py: Batches of one size, for backends whose code is compiled for it: padded, and the padding cut off again.


Scored = tuple[Tensor, Tensor]
"""Scores [N, H] and embeddings [N, D]."""


def in_batches(score: Callable[[Tensor], Scored], images_NHWC: Tensor, batch_size: int) -> Scored:
    """`score` on contiguous batches of exactly `batch_size` images, its results for the given ones."""
    parts = [_padded(score, part, batch_size) for part in torch.split(images_NHWC, batch_size)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([scores for scores, _ in parts]), torch.cat([embeddings for _, embeddings in parts])


def _padded(score: Callable[[Tensor], Scored], part_NHWC: Tensor, batch_size: int) -> Scored:
    count = len(part_NHWC)
    if count == batch_size:
        return score(part_NHWC.contiguous())
    full_NHWC = part_NHWC.new_zeros(batch_size, *part_NHWC.shape[1:])
    full_NHWC[:count] = part_NHWC
    scores_NH, embeddings_ND = score(full_NHWC)
    return scores_NH[:count], embeddings_ND[:count]


def check_compiler(backend: str) -> None:
    """Raises ValueError where there is no C++ compiler, which Inductor needs for CPUs and for launchers."""
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else ["g++", "clang++"])):
        raise ValueError(
            f"backend {backend} needs a C++ compiler, and finds no {named or 'g++'}: install one "
            "(apt install g++), or use --backend torchscript"
        )


# FOLDED dali_aesthetic/score/fast/torchscript.py: The scoring module traced, frozen and kept in one portable file: pixels in, scores out, no Python.
#
# torch calls `torch.jit` deprecated and keeps it working (2.14 does); whatever succeeds it takes this file's
# place behind `Backend`.


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


def build_torchscript(
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
