"""The plain backends against the eager one, on a CPU with a tiny tower, and on a GPU."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dali_aesthetic.score.backends import cache, plain
from dali_aesthetic.score.backends.backend import Backend
from dali_aesthetic.score.build import ModelReader, scorer_of

MakeBackend = Callable[..., Backend]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.VARIABLE, str(tmp_path_factory.mktemp("cache")))
        for variable in cache.LIBRARIES:
            patch.delenv(variable, raising=False)
        yield


def test_eager_gives_scores_and_embeddings(make_backend: MakeBackend, pixels: Tensor) -> None:
    backend = make_backend("auto")
    assert (backend.name, backend.precision, backend.head_names) == ("eager", "fp32", ("h0", "h1"))
    scores_NH, embeddings_ND = backend(pixels)
    assert (scores_NH.shape, scores_NH.dtype) == ((16, 2), torch.float32)
    assert (embeddings_ND.shape, embeddings_ND.dtype) == ((16, 32), torch.float32)
    assert scores_NH[:, 0].std() > 0.01


def test_a_score_depends_on_its_image_alone(make_backend: MakeBackend, pixels: Tensor) -> None:
    """To the bit, for one batch size: neither on the other images of the batch nor on the position in it."""
    backend = make_backend("eager")
    scores_NH, embeddings_ND = backend(pixels)
    for seed in range(3):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(backend(pixels[order])[0], scores_NH[order])
        assert torch.equal(backend(pixels[order])[1], embeddings_ND[order])
    for place in range(16):
        alone = torch.zeros_like(pixels)
        alone[place] = pixels[3]
        assert torch.equal(backend(alone)[0][place], scores_NH[3])


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [7, 32])
def test_a_score_depends_on_its_image_alone_at_full_size(batch_size: int) -> None:
    model = ModelReader(encoder="ViT-B-32", weights="random", heads=["random"], model_dir=None).take()
    scorer = scorer_of(model, device=CPU, batch_size=batch_size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, 224, 224, 3), dtype=torch.uint8, generator=generator)
    order = torch.randperm(batch_size, generator=generator)
    scores_NH, _ = scorer.backend(images)
    assert torch.equal(scorer.backend(images[order])[0], scores_NH[order])


def test_bf16_is_close_to_fp32(make_backend: MakeBackend, pixels: Tensor) -> None:
    expected = make_backend("eager", precision="fp32")(pixels)[0]
    found = make_backend("eager", precision="bf16")(pixels)[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.5, rtol=0)


def test_torchscript_equals_eager(make_backend: MakeBackend, pixels: Tensor) -> None:
    eager, traced = make_backend("eager"), make_backend("torchscript")
    assert (traced.name, traced.precision, traced.head_names) == ("torchscript", "fp32", ("h0", "h1"))
    for images in (pixels, pixels.flip(0), pixels[:5]):
        for found, expected in zip(traced(images), eager(images), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("error")
def test_torchs_deprecation_of_torchscript_is_silenced(make_backend: MakeBackend, pixels: Tensor) -> None:
    make_backend("torchscript")(pixels)


@pytest.mark.parametrize("name", ["eager", "torchscript"])
def test_pixels_of_another_shape_are_refused(make_backend: MakeBackend, name: str) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 pixels \[N, 32, 32, 3\]"):
        make_backend(name)(torch.zeros(16, 3, 32, 32))


@pytest.mark.parametrize(
    "compiler",
    [
        # Without Inductor, whose C++ kernels take a minute to compile.
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.skipif(
                    not any(map(shutil.which, ("g++", "clang++"))),
                    reason="no C++ compiler: apt install g++",
                ),
                pytest.mark.skipif(
                    not os.environ.get("DALI_AESTHETIC_INDUCTOR"), reason="minutes: DALI_AESTHETIC_INDUCTOR=1"
                ),
            ],
        ),
    ],
)
def test_compiled_equals_eager_in_any_thread(
    make_backend: MakeBackend, pixels: Tensor, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "_check_compiler", lambda: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    backend, eager = make_backend("compile"), make_backend("eager")
    assert (backend.name, backend.precision, backend.head_names) == ("compile", "fp32", ("h0", "h1"))
    for images in (pixels, pixels[:5], torch.cat([pixels, pixels[3:7]])):
        for given, expected in zip(backend(images), eager(images), strict=True):
            torch.testing.assert_close(given, expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"takes uint8 pixels \[N, 32, 32, 3\]"):
        backend(torch.zeros(16, 3, 32, 32))
    found: list[Tensor] = []
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    num_threads = torch.get_num_threads()

    def work() -> None:
        torch.set_num_threads(num_threads)  # a new thread may have another number, and Dynamo guards on it
        found.append(backend(pixels)[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert torch.equal(found[0], backend(pixels)[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, (
        "compiled again in another thread"
    )


def test_a_missing_compiler_is_named_with_the_package_to_install(
    make_backend: MakeBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"backend compile needs a C\+\+ compiler.*apt install"):
        make_backend("compile")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "precision", "atol"),
    [
        ("eager", "fp32", 1e-3),
        ("eager", "fp16", 0.05),
        ("torchscript", "fp16", 0.05),
        ("torchscript", "bf16", 0.5),
    ],
)
def test_gpu_scores_are_close_to_the_cpus_and_do_not_depend_on_the_position(
    make_backend: MakeBackend, pixels: Tensor, name: str, precision: str, atol: float
) -> None:
    expected = make_backend("eager")(pixels)[0]
    backend = make_backend(name, CUDA, precision)
    found = backend(pixels.cuda())[0]
    torch.testing.assert_close(found.cpu(), expected, atol=atol, rtol=0)
    order = torch.randperm(16)
    assert torch.equal(backend(pixels[order].cuda())[0].cpu(), found.cpu()[order])


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "atol"), [("fp16", 0.05), ("bf16", 0.5)])
def test_compiled_scores_on_a_gpu(
    make_backend: MakeBackend, pixels: Tensor, precision: str, atol: float
) -> None:
    expected = make_backend("eager")(pixels)[0]
    backend = make_backend("compile", CUDA, precision)
    torch.testing.assert_close(backend(pixels.cuda())[0].cpu(), expected, atol=atol, rtol=0)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(cache.cache_folder()))
