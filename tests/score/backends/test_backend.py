"""Scores on the CPU are bit-equal for any threads, batch size and position; libraries are imported ahead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dali_aesthetic.score.backends.backend import SLICE, Backend, SlicedBackend
from dali_aesthetic.score.build import ModelReader, scorer_of


def images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 224, 224, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("backend", ["eager", "torchscript"])
def test_bits_do_not_depend_on_threads_batch_size_or_position(backend: str) -> None:
    model = ModelReader(
        encoder="ViT-S-32-alt", weights="random:1", heads=["random:1"], model_dir=Path("nowhere")
    ).take()
    scorer = scorer_of(model, device=torch.device("cpu"), backend=backend, batch_size=3 * SLICE - 2)
    sliced = scorer.backend
    assert isinstance(sliced, SlicedBackend)
    pixels, order = images(3 * SLICE - 2), torch.randperm(3 * SLICE - 2)
    expected = sliced(pixels)[0].numpy()
    for num_threads in (1, 3):  # besides the number of cores
        other = SlicedBackend(sliced._backend, num_threads)
        assert np.array_equal(other(pixels)[0].numpy(), expected)
    assert np.array_equal(other(pixels[order])[0].numpy(), expected[order])
    alone = np.concatenate([sliced(image[None])[0].numpy() for image in pixels[:2]])
    assert np.array_equal(alone, expected[:2])
    whole = sliced._backend(pixels)[0].numpy()
    assert np.abs(whole - expected).max() < 1e-4, "close to the batch in one piece"


def test_embeddings_are_returned_with_the_scores() -> None:
    model = ModelReader(
        encoder="ViT-S-32-alt", weights="random:1", heads=["random:1", "random:2"], model_dir=None
    ).take()
    scorer = scorer_of(model, device=torch.device("cpu"))
    scores, embeddings = scorer.backend(images(SLICE + 1))
    assert (scores.shape, embeddings.shape) == ((SLICE + 1, 2), (SLICE + 1, 256))


def test_a_partial_batch_costs_only_its_slices_and_is_bit_equal_to_a_full_one() -> None:
    model = ModelReader(encoder="ViT-S-32-alt", weights="random:1", heads=["random:1"], model_dir=None).take()
    scorer = scorer_of(model, device=torch.device("cpu"), batch_size=4 * SLICE)
    sliced = scorer.backend
    assert isinstance(sliced, SlicedBackend)
    counted = _Counting(sliced._backend)
    pixels = images(4 * SLICE)
    full = scorer.score_pixels(pixels)
    scorer.backend = SlicedBackend(counted, 2)
    part = scorer.score_pixels(pixels[: SLICE + 1])
    assert np.array_equal(part, full[: SLICE + 1])
    assert counted.calls == 2


class _Counting:
    def __init__(self, backend: Backend) -> None:
        self.name, self.precision = backend.name, backend.precision
        self.spec, self.head_names = backend.spec, backend.head_names
        self.calls = 0
        self._backend = backend

    def __call__(self, images_NHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        return self._backend(images_NHWC)


def test_the_libraries_of_the_chosen_backend_are_imported_ahead() -> None:
    pytest.importorskip("triton")
    script = (
        "import sys, torch\n"
        "from dali_aesthetic.score.backends import backend, fits\n"
        "from dali_aesthetic.score.spec import spec_of\n"
        "fits.why_not_triton = lambda spec, device: ''\n"
        "fits._check_device = lambda backend, precision, device: None\n"
        "folder = 'dali_aesthetic.score.backends.kernels.'\n"
        "for name, precision in (('eager', 'fp32'), ('triton', 'fp16')):\n"
        "    backend.import_libraries(name, precision, torch.device('cpu'), spec_of('ViT-L-14'))\n"
        "    print(*(m.removeprefix(folder) for m in sys.modules if m.startswith(folder)))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = found.stdout.splitlines()
    assert before == ""
    assert {"attention", "class_block", "embed", "layernorm"} <= set(after.split())
