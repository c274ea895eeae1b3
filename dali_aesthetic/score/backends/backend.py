"""The interface of all backends, and the functions that build one by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from dali_aesthetic.overlap import pool
from dali_aesthetic.score.backends.cache import use_cache_folder
from dali_aesthetic.score.backends.calibration import Calibration
from dali_aesthetic.score.backends.fits import BACKENDS, choose_backend
from dali_aesthetic.score.clip import VisionTower, check_pixels, pad_to
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.spec import TowerSpec


class Backend(Protocol):
    """Scores batches of pixels that are already on its device.

    Work is launched on the device's current stream; nothing waits for it. The tensors returned are valid
    until the next call.
    """

    name: str
    precision: str
    spec: TowerSpec
    head_names: tuple[str, ...]

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N, H] float32 and embeddings [N, D], not normalised, of uint8 RGB [N, S, S, 3].

        Raises ValueError for pixels of another shape or dtype.
        """
        ...


Builder = Callable[[VisionTower, HeadBank, torch.device, str, int], Backend]
"""From a float32 tower on the CPU (which it may take over), heads, device, precision and batch size."""


def build_backend(
    name: str,
    tower: VisionTower,
    heads: HeadBank,
    device: torch.device,
    precision: str,
    batch_size: int,
    calibration: Calibration | None = None,
) -> Backend:
    """The backend `name` (or `auto`) on `device`. Takes the tower over. Raises as `choose_backend`.

    fp8 needs a `calibration`. Some backends compile at their first call: see `warm_up`.
    """
    name, precision = choose_backend(name, precision, device, tower.spec)
    use_cache_folder()
    if precision == "fp8":
        return _build_float8(tower, heads, device, batch_size, calibration)
    builder: Builder = getattr(_import_module_of(name), BACKENDS[name].builder.partition(":")[2])
    return builder(tower, heads, device, precision, batch_size)


def warm_up(backend: Backend, device: torch.device, batch_size: int) -> None:
    """Scores a batch on a GPU and waits for it, so that kernels are loaded and compiled before the loop."""
    if device.type == "cuda":
        size = backend.spec.image_size
        backend(torch.zeros(batch_size, size, size, 3, dtype=torch.uint8, device=device))
        torch.cuda.synchronize(device)


def import_libraries(name: str, precision: str, device: torch.device, spec: TowerSpec) -> None:
    """Imports the libraries of the backend that a tower of `spec` will get, and initialises CUDA.

    Both take seconds, which can be spent beside reading the weights. Raises ValueError as `choose_backend`.
    """
    if device.type == "cuda":
        torch.empty(1, device=device)
    # Only the weights tell which GELU it is: importing too much costs less than importing too little.
    chosen, _ = choose_backend(name, precision, device, spec.with_quick_gelu(True))
    use_cache_folder()
    _import_module_of(chosen)
    if chosen == "fused":
        from dali_aesthetic.score.backends.kernels.gemm import import_epilogues

        import_epilogues()


def _import_module_of(backend: str) -> Any:
    return importlib.import_module(BACKENDS[backend].builder.partition(":")[0])


def _build_float8(
    tower: VisionTower,
    heads: HeadBank,
    device: torch.device,
    batch_size: int,
    calibration: Calibration | None,
) -> Backend:
    from dali_aesthetic.score.backends.fused_fp8 import build

    if calibration is None:
        raise ValueError(
            "precision fp8 needs scales that were measured on images: `dali-aesthetic run` measures them on "
            "its input; elsewhere name its OUTPUT/calibration.safetensors as model.calibration, or use fp16"
        )
    return build(tower, heads, device, batch_size, calibration)


SLICE = 8
"""Images of a slice on the CPU. Another number gives other last bits."""


class SlicedBackend:
    """See `Backend`. Wraps one on the CPU that takes any number of images: one thread scores each slice.

    Where several threads share a matrix product, their number decides how it is cut and so the order of its
    sums: the last bits of a score would differ between one worker with 16 cores and four with 4. A slice has
    one thread and one shape, whatever the number of threads and the batch size.
    """

    def __init__(self, backend: Backend, num_threads: int) -> None:
        self.name, self.precision = backend.name, backend.precision
        self.spec, self.head_names = backend.spec, backend.head_names
        self._backend = backend
        self._pool = pool(num_threads, "encoder")

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend`."""
        check_pixels(images_NHWC, self.spec)
        parts = list(self._pool.map(self._score, torch.split(images_NHWC, SLICE)))
        scores_NH, embeddings_ND = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        return scores_NH[: len(images_NHWC)], embeddings_ND[: len(images_NHWC)]

    def _score(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(1)  # of this thread of the pool
        return self._backend(pad_to(SLICE, images_NHWC))
