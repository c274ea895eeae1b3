"""The benchmarks of kernels, with kernels replaced by torch: what is launched, and what bounds it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import kernels
from benchmarks.kernels import Kernel, kernels_of, measure_kernels
from benchmarks.results import Record, read_result
from benchmarks.roofline import VIT_L_14
from benchmarks.settings import Settings
from benchmarks.tables import blocks
from dali_aesthetic.score.backends import fits
from dali_aesthetic.score.backends.kernels import class_block, gemm
from tests.score.backends import twins

CPU = torch.device("cpu")
EVERY_KERNEL = {
    "patchify", "assemble and ln_pre", "LayerNorm to fp16", "LayerNorm to fp8", "LayerNorm's moments",
    "moments from sums", "attention to fp16", "attention to fp8", "last block's attention",
    "qkv fp16, normed linear", "proj fp16, linear residual moments", "fc1 fp16, normed linear quick gelu",
    "fc2 fp16, linear residual moments", "qkv fp8, scaled linear", "proj fp8, scaled linear residual",
    "fc1 fp8, scaled linear quick gelu", "fc2 fp8, scaled linear residual",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    twins.install(monkeypatch)
    monkeypatch.setattr(gemm, "Gemm", twins.TorchGemm)
    monkeypatch.setattr(class_block, "class_attention", twins.class_attention)


def test_every_kernel_is_measured_against_its_bound_and_shown(tmp_path: Path) -> None:
    record = Record("kernels", tmp_path, CPU, {})
    measure_kernels(record, twins.SPEC, CPU, batch_size=3, repeats=2, seconds=0.002)
    result = read_result(record.path)
    found = {row.name: row for row in result.rows if row.limit}
    assert set(found) == EVERY_KERNEL
    for row in found.values():
        assert row.detail["microseconds"] == pytest.approx(1e6 / row.median, rel=1e-3)
        assert row.of_limit == pytest.approx(
            row.detail["bound_microseconds"] / row.detail["microseconds"], rel=0.02
        )
        assert row.detail["bound_by"] in ("products", "memory")
    assert "Not measured yet." in blocks([])["kernels"]


def test_operations_and_bytes_of_the_published_tower_are_counted_for_one_image() -> None:
    """By hand, for 256 patches and a class token of 1,024 channels."""
    found = {kernel.name: kernel for kernel in kernels_of(VIT_L_14, 1, CPU)}
    attention = found["attention to fp8"]
    assert attention.flops == 4 * 257 * 257 * 1024
    assert attention.bytes == 1024 * (3 * 2 * 257 + 256 + 2)
    fc2 = found["fc2 fp8, scaled linear residual"]
    assert fc2.flops == 2 * 256 * 1024 * 4096
    assert fc2.bytes == 256 * (4096 + 1024 * 4) + 1024 * 4096, "rows, residual in and out, weights"
    assert found["LayerNorm to fp8"].bytes == 257 * 1024 * 3


def test_the_slower_of_products_and_memory_is_the_bound() -> None:
    rates = {"fp16": 1.0, "fp8": 2.0}
    work = Kernel("any", lambda: None, flops=4e9, bytes=1e6, precision="fp8")
    assert work.seconds(rates, 1.0) == (2e-3, "products")
    assert work.seconds(rates, 0.1) == (1e-2, "memory")


def test_where_the_kernels_can_not_run_it_says_why_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fits, "why_not_quack", lambda device: "it needs a Hopper GPU")
    monkeypatch.setattr(kernels, "measure_kernels", None)
    kernels.measure(Settings(device="cpu", results=tmp_path))
    assert "it needs a Hopper GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
