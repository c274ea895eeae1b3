"""`torch.compile` and the ahead-of-time package against eager, on a CPU with a tiny tower."""

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

from dali_aesthetic.score.backends import cache, exported, plain
from dali_aesthetic.score.backends.backend import Backend, build_backend
from dali_aesthetic.score.clip import VisionTower
from dali_aesthetic.score.head import Head, HeadBank, HeadMLP, head_from_state
from dali_aesthetic.score.spec import TowerSpec
from dali_aesthetic.score.weights import random_head_state, random_tower_state

MakeBackend = Callable[..., Backend]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ONE_PACKAGE = {
    "aot_inductor.precompile_headers": False,
    "cpp_cache_precompile_headers": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "cpp.vec_isa_ok": True,
}
"""Has Inductor compile packages, and the code between the kernels, half a minute faster."""
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="Inductor needs a C++ compiler: apt install g++"
)


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.VARIABLE, str(tmp_path_factory.mktemp("cache")))
        for variable in cache.LIBRARIES:
            patch.delenv(variable, raising=False)
        yield


def assert_equals_eager(backend: Backend, make_backend: MakeBackend, pixels: Tensor) -> None:
    eager = make_backend("eager")
    for images in (pixels, pixels[:5], torch.cat([pixels, pixels[3:7]])):
        for found, expected in zip(backend(images), eager(images), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"takes uint8 pixels \[N, 32, 32, 3\]"):
        backend(torch.zeros(16, 3, 32, 32))


@pytest.mark.parametrize(
    "kind",
    [
        # Without Inductor: its C++ kernels take a minute, and the export's test has them too.
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                needs_compiler,
                pytest.mark.skipif(
                    not os.environ.get("DALI_AESTHETIC_INDUCTOR"), reason="minutes: DALI_AESTHETIC_INDUCTOR=1"
                ),
            ],
        ),
    ],
)
def test_compiled_equals_eager_in_any_thread(
    make_backend: MakeBackend, pixels: Tensor, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "check_compiler", lambda backend: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=kind))
    backend = make_backend("compile")
    assert (backend.name, backend.precision, backend.head_names) == ("compile", "fp32", ("h0", "h1"))
    assert_equals_eager(backend, make_backend, pixels)
    found: list[Tensor] = []
    frames = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    num_threads = torch.get_num_threads()

    def work() -> None:
        torch.set_num_threads(num_threads)  # a new thread may have another number, and that is guarded
        found.append(backend(pixels)[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert torch.equal(found[0], backend(pixels)[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == frames, (
        "compiled again in the loop's thread"
    )


@needs_compiler
def test_exported_equals_eager_and_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the smallest tower there is: a C++ compiler takes its time for each kernel."""
    pixels = torch.randint(0, 256, (7, 16, 16, 3), dtype=torch.uint8)
    expected = build_backend("eager", *smallest(), CPU, "fp32", 4)(pixels)
    with torch._inductor.config.patch(ONE_PACKAGE):
        backend = build_backend("export", *smallest(), CPU, "fp32", 4)
    assert (backend.name, backend.precision, backend.head_names) == ("export", "fp32", ("h",))
    for images in (pixels[:4], pixels[:1], pixels):
        for found, wanted in zip(backend(images), expected, strict=True):
            torch.testing.assert_close(found, wanted[: len(images)], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"takes uint8 pixels \[N, 16, 16, 3\]"):
        backend(torch.zeros(4, 3, 16, 16))
    monkeypatch.setattr(exported, "export", None)  # whoever exports now fails
    monkeypatch.setattr(exported, "alone", None)  # or locks: a cache that is made may be read-only
    again = build_backend("export", *smallest(), CPU, "fp32", 4)
    assert torch.equal(again(pixels)[0], backend(pixels)[0])
    assert not list((cache.cache_folder() / "export").glob(".*.pt2")), "nothing half made is left"


@pytest.mark.parametrize("fault", ["no package", "a segmentation fault"])
def test_a_package_that_does_not_run_is_refused_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    def write_something(program: object, package_path: str) -> None:
        Path(package_path).write_bytes(b"no package")

    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", write_something)
    said = r"it ended by SIGSEGV" if fault == "a segmentation fault" else r".*[Ee]rror.*"
    if fault == "a segmentation fault":
        (interpreter := tmp_path / "python").write_text("#!/bin/sh\nkill -SEGV $$\n")
        interpreter.chmod(0o755)
        monkeypatch.setattr("sys.executable", str(interpreter))
    with pytest.raises(ValueError, match=rf"backend export: .* doesn't run on this machine \({said}\)"):
        build_backend("export", *smallest(), CPU, "fp32", 4)
    assert not list((tmp_path / "export").glob("*.pt2"))


def smallest() -> tuple[VisionTower, HeadBank]:
    spec = TowerSpec(
        name="smallest", image_size=16, patch_size=8, width=32, layers=2, heads=2, mlp_width=64, embed_dim=16,
        quick_gelu=True,
    )  # fmt: skip
    head = Head("h", head_from_state(random_head_state(spec.embed_dim)))
    return VisionTower.from_state(spec, random_tower_state(spec)), HeadBank([head], spec.embed_dim)


def test_a_package_is_named_by_all_that_it_depends_on(tiny_spec: TowerSpec) -> None:
    def path(seed: int = 0, head: int = 0, precision: str = "fp32", batch_size: int = 16) -> Path:
        tower = VisionTower.from_state(tiny_spec, random_tower_state(tiny_spec, seed))
        heads = HeadBank([Head("h", head_from_state(random_head_state(32, head)))], 32)
        return exported.package_path(tower, heads, CPU, precision, batch_size)

    usual = path()
    assert usual == path()
    others = [path(seed=1), path(head=1), path(precision="bf16"), path(batch_size=17)]
    assert len({usual, *others}) == 5


def test_heads_of_the_same_weights_that_score_otherwise_have_packages_of_their_own(
    tiny_spec: TowerSpec,
) -> None:
    weights = [(torch.ones(8, 32), torch.zeros(8)), (torch.ones(8, 8), torch.ones(8)), random_layer(8)]
    bent, less_bent = HeadMLP(weights, relu=True), HeadMLP(weights, relu=(True, False))
    share, affine = HeadMLP(weights, relu=True, sigmoid=True), HeadMLP([random_layer(32)], relu=False)
    banks = [[bent], [less_bent], [share], [bent, affine], [affine, bent]]
    tower = VisionTower.from_state(tiny_spec, random_tower_state(tiny_spec))
    paths = {
        exported.package_path(
            tower, HeadBank([Head(f"h{i}", mlp) for i, mlp in enumerate(bank)], 32), CPU, "fp32", 16
        )
        for bank in banks
    }
    assert len(paths) == len(banks)


def random_layer(inputs: int) -> tuple[Tensor, Tensor]:
    return torch.randn(1, inputs, generator=torch.Generator().manual_seed(inputs)), torch.zeros(1)


@pytest.mark.parametrize("name", ["compile", "export"])
def test_without_a_compiler_it_says_what_to_install(
    make_backend: MakeBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match=rf"backend {name} needs a C\+\+ compiler.*apt install"):
        make_backend(name)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["compile", "export"])
def test_on_a_gpu(make_backend: MakeBackend, pixels: Tensor, name: str, precision: str) -> None:
    expected = make_backend("eager")(pixels)[0]
    backend = make_backend(name, CUDA, precision)
    atol = 0.05 if precision == "fp16" else 0.5
    torch.testing.assert_close(backend(pixels.cuda())[0].cpu(), expected, atol=atol, rtol=0)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(cache.cache_folder()))
