"""Functions that are compiled, or kept from being compiled, only once they are called."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dali_aesthetic.score.backends.kernels.epilogues import compiled_when_called


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The names and options of what torch was asked for; what it gives adds one to the result."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def wrap(model: Any, **options: Any) -> Callable[..., Any]:
        seen.append((getattr(model, "__name__", "a module"), options))
        return lambda *args: model(*args) + 1

    def compile(model: Any = None, *, dynamic: bool | None = None) -> Any:
        return wrap(model, dynamic=dynamic)

    def disable(fn: Any = None, recursive: bool = True) -> Any:
        return wrap(fn, recursive=recursive)

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(torch.compiler, "disable", disable)
    return seen


def test_a_function_is_compiled_when_it_is_first_called(compiled: list[tuple[str, dict[str, Any]]]) -> None:
    def double(x: int) -> int:
        """Twice."""
        return 2 * x

    with compiled_when_called():
        doubled = torch.compile(double, dynamic=False, recompile_limit=64)  # of a torch newer than this one
    assert (compiled, doubled.__doc__) == ([], "Twice.")
    assert (doubled(3), doubled(4)) == (7, 9)
    assert compiled == [("double", {"dynamic": False})]


def test_a_decorated_method_is_wrapped_when_it_is_first_called(
    compiled: list[tuple[str, dict[str, Any]]],
) -> None:
    with compiled_when_called():

        class Counter:
            start = 10

            @torch.compiler.disable
            def plain(self, by: int) -> int:
                return self.start + by

            @torch.compiler.disable(recursive=False)
            def called(self, by: int) -> int:
                return self.start - by

    assert compiled == []
    assert (Counter().plain(1), Counter().called(1)) == (12, 10)
    assert compiled == [("plain", {"recursive": True}), ("called", {"recursive": False})]


def test_a_module_goes_to_torch_at_once(compiled: list[tuple[str, dict[str, Any]]]) -> None:
    with compiled_when_called():
        torch.compile(torch.nn.Identity())
    assert compiled == [("a module", {"dynamic": None})]


def test_torch_is_itself_again_also_after_a_failure() -> None:
    before = torch.compile, torch.compiler.disable

    def fail() -> None:
        with compiled_when_called():
            assert torch.compile is not before[0]
            raise ImportError("no QuACK")

    with pytest.raises(ImportError, match="no QuACK"):
        fail()
    assert (torch.compile, torch.compiler.disable) == before


@pytest.mark.skipif(importlib.util.find_spec("quack") is None, reason="needs the extra hopper")
def test_quack_is_imported_without_dynamo_and_inductor() -> None:
    """Fails where a new QuACK draws them in by another way: 4 s of every start."""
    script = (
        "import sys\n"
        "from dali_aesthetic.score.backends.kernels.gemm import import_epilogues\n"
        "assert import_epilogues().normed_linear\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
