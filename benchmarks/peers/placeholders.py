"""Stand-ins for packages that a peer imports and never calls here."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any
from unittest.mock import MagicMock

PACKAGES = ("ray", "cosmos_xenna")
"""NeMo Curator's."""


def install(packages: Sequence[str] = PACKAGES) -> list[str]:
    """Install a placeholder for each of `packages` that is missing; returns the names of those that have one.

    Ray calls it by name in every worker that it starts, before other imports: this module imports little.
    """
    held = {finder.package for finder in sys.meta_path if isinstance(finder, _Placeholder)}
    missing = [name for name in packages if name not in held and importlib.util.find_spec(name) is None]
    sys.meta_path += [_Placeholder(name) for name in missing]
    return [name for name in packages if name in {*held, *missing}]


class _Placeholder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes modules of a missing package that have every name and do nothing."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] != self.package:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = _answer  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _answer(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    # The only value that is used at import: a limit, which is written to the environment.
    return 40_000 if name == "API_LIMIT" else MagicMock()
