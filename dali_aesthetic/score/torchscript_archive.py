"""The tensors of a TorchScript archive, without loading its program.

`torch.load(weights_only=True)` refuses such archives and `torch.jit.load` compiles the code in them and runs
its `__setstate__` methods. The tensors lie beside the code: `data.pkl` describes the tree of modules, one
file each in `data/` holds the storages. The pickle is read with every global it names replaced by one of the
inert stand-ins below, so nothing of it can run.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _Module:
    """Stands for an instance of any class of the archive: holds its attributes, does nothing."""

    attributes: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive: a zip with a program beside its pickles."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # no zip, or a damaged one, which raises many types: whoever reads it next says so
        return False
    return any("/code/" in name for name in names) and any(name.endswith("/data.pkl") for name in names)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of an archive's module tree by their dotted names, on the CPU.

    Raises ValueError for an archive whose pickle is more than modules, tensors and plain values, or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        # Not at the root: everything lies in one folder, named after the file it was first saved as.
        pickle_name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        try:
            with archive.open(pickle_name) as stream:
                root = _Unpickler(stream, archive, pickle_name.removesuffix("data.pkl")).load()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is a damaged archive ({error}): download it again") from error
        except Exception as error:  # the unpickler raises whatever a damaged file makes it stumble over
            raise ValueError(f"{path}: its data.pkl is not TorchScript's: {error}") from error
    if not isinstance(root, _Module):
        raise ValueError(f"{path}: its data.pkl holds no module")
    return dict(_tensors(root, ""))


def _tensors(module: _Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield prefix + name, value


class _Unpickler(pickle.Unpickler):
    """Knows the globals of TorchScript's pickles and raises for any other."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream)
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _device, num_elements = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to a {kind}")
        data = bytearray(self._archive.read(f"{self._folder}data/{key}"))
        return torch.frombuffer(data, dtype=dtype, count=num_elements) if num_elements else torch.empty(0)


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    return storage.as_strided(size, stride, offset)
