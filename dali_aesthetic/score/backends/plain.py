"""The backends of plain PyTorch: eager, `torch.compile` and TorchScript, on any device.

All three run one `ScoringModule`: uint8 pixels in, scores and embeddings out.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dali_aesthetic.score.clip import Normalize, VisionTower, check_pixels
from dali_aesthetic.score.head import HeadBank

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The precisions of the plain backends: the dtype of the tower's weights and activations."""

Scored = tuple[Tensor, Tensor]
"""Scores [N, H] float32 and embeddings [N, D], not normalised."""

_WARM_UP_CALLS = 3
"""TorchScript's profiling executor watches two calls and compiles its kernels in the third."""


class ScoringModule(nn.Module):
    """Normalise, embed, score. The tower computes in `dtype`; pixels and heads are always in float32."""

    def __init__(self, tower: VisionTower, heads: HeadBank, dtype: torch.dtype = torch.float32) -> None:
        """Takes the tower over: its weights are converted in place."""
        super().__init__()
        self.normalize = Normalize(tower.spec, dtype)
        self.tower = tower.to(dtype)
        self.heads = heads.float()
        self.requires_grad_(False).eval()

    def forward(self, images_NHWC: Tensor) -> Scored:
        """Scores [N, H] float32 and embeddings [N, D] in `dtype`, not normalised, of uint8 pixels."""
        embeddings_ND = self.tower(self.normalize(images_NHWC))
        return self.heads(embeddings_ND), embeddings_ND


class PlainBackend:
    """See `Backend`. `score` is the module itself, or the function that torch made of it."""

    def __init__(
        self, name: str, precision: str, module: ScoringModule, score: Callable[[Tensor], Scored]
    ) -> None:
        self.name, self.precision = name, precision
        self.spec, self.head_names = module.tower.spec, module.heads.names
        self._score = score

    def __call__(self, images_NHWC: Tensor) -> Scored:
        """See `Backend`."""
        check_pixels(images_NHWC, self.spec)
        with torch.inference_mode():
            scores_NH, embeddings_ND = self._score(images_NHWC)
        return scores_NH, embeddings_ND


def build_eager(
    tower: VisionTower, heads: HeadBank, device: torch.device, precision: str, batch_size: int
) -> PlainBackend:
    """The modules as they are, one kernel per operation. Takes any batch size."""
    module = ScoringModule(tower, heads, DTYPES[precision]).to(device)
    return PlainBackend("eager", precision, module, module)


def build_torchscript(
    tower: VisionTower, heads: HeadBank, device: torch.device, precision: str, batch_size: int
) -> PlainBackend:
    """Traced and frozen. On a GPU its kernels are compiled for `batch_size`; it takes any.

    torch calls `torch.jit` deprecated and keeps it working (as of 2.14).
    """
    module = ScoringModule(tower, heads, DTYPES[precision]).to(device)
    size = tower.spec.image_size
    example_NHWC = torch.full((batch_size, size, size, 3), 127, dtype=torch.uint8, device=device)
    with _deprecation_silenced(), torch.no_grad():
        traced = torch.jit.trace(module, example_NHWC, check_trace=False)  # type: ignore[no-untyped-call]
        backend = PlainBackend("torchscript", precision, module, torch.jit.freeze(traced))
    if device.type == "cuda":
        for _ in range(_WARM_UP_CALLS):
            backend(example_NHWC)
        torch.cuda.synchronize(device)
    return backend


@contextmanager
def _deprecation_silenced() -> Iterator[None]:
    """Silences torch's warnings that `torch.jit` is deprecated, and no others."""
    with warnings.catch_warnings():
        # A FutureWarning or a DeprecationWarning, depending on the function and torch's version.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)", Warning)
        yield


def build_compiled(
    tower: VisionTower,
    heads: HeadBank,
    device: torch.device,
    precision: str,
    batch_size: int,
    mode: str | None = None,
) -> PlainBackend:
    """By `torch.compile`. Compiles at its first call, and again for another number of images.

    `mode` is torch.compile's: None, or `max-autotune-no-cudagraphs` to tune matrix products too. Raises
    ValueError without a C++ compiler.
    """
    _check_compiler()
    module = ScoringModule(tower, heads, DTYPES[precision]).to(device)
    compiled = torch.compile(module, dynamic=False, fullgraph=True, mode=mode)
    return PlainBackend("compile", precision, module, compiled)


def _check_compiler() -> None:
    """Raises ValueError without a C++ compiler, which Inductor needs on CPUs and to launch GPU kernels."""
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else ["g++", "clang++"])):
        raise ValueError(
            f"backend compile needs a C++ compiler, and finds no {named or 'g++'}: install one "
            "(apt install g++), or use --backend torchscript"
        )
