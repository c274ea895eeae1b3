"""CLIP checkpoint files, read without running code in them, with tensors renamed to those of `VisionTower`.

The format of a file is detected from its content, never from its name.
"""

from __future__ import annotations

import _codecs
import json
import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from dali_aesthetic.score.spec import RGB

FOLDER_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "model.safetensors.index.json",
    "model.fp16.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Weight files of Hugging Face's and open_clip's model folders, in order of preference."""

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Entries of a trainer's checkpoint that hold the state dict, in order of preference."""
_PREFIX = r"(?:(?:module|model|clip_model|clip)\.)*"
_TOWERS = {
    "visual.class_embedding": "",
    "vision_model.embeddings.class_embedding": "",
    "class_embedding": "visual.",
}
"""The tensor that marks an image tower -> the prefix to add where it is a tower on its own."""

# The optimizers of open_clip's trainer hold numpy scalars. None of these runs code from the file. numpy 1
# and 2 write the first one by different paths.
_scalar: Any = np.float64(0).__reduce__()[0]
_NUMPY_GLOBALS: list[Any] = [
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    _codecs.encode,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"},
]

_OPEN_CLIP = {
    "visual.conv1.": "patch_embed.",
    "visual.class_embedding": "class_embedding",
    "visual.positional_embedding": "positional_embedding",
    "visual.proj": "projection",
    "visual.ln_pre.": "ln_pre.",
    "visual.ln_post.": "ln_post.",
    "visual.transformer.resblocks.": "blocks.",
    ".attn.in_proj_": ".qkv.",
    ".attn.out_proj.": ".proj.",
    ".mlp.c_fc.": ".fc1.",
    ".mlp.c_proj.": ".fc2.",
}
_HF = {
    "vision_model.embeddings.patch_embedding.": "patch_embed.",
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.pre_layrnorm.": "ln_pre.",
    "vision_model.post_layernorm.": "ln_post.",
    "vision_model.encoder.layers.": "blocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.out_proj.": ".proj.",
    ".mlp.fc1.": ".fc1.",
    ".mlp.fc2.": ".fc2.",
}


_PIL_BICUBIC = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The vision tower of a checkpoint, with tensors named as `VisionTower`'s parameters.

    `quick_gelu` is None where the checkpoint doesn't say which GELU it was trained with, `statistics` (mean
    and std of pixels in [0, 1]) where it doesn't say how its pixels were normalised.
    """

    state: dict[str, Tensor]
    quick_gelu: bool | None
    statistics: tuple[RGB, RGB] | None = None


def read_clip(path: Path, registered: Callable[[], Mapping[str, Any]] = dict) -> Checkpoint:
    """The vision tower of a checkpoint file, or of a model folder of Hugging Face's or open_clip's.

    `registered` gives open_clip's entry for the weights, where no configuration lies beside them.

    Raises ValueError for a file that is no CLIP checkpoint with a ViT or that holds code, and for a folder
    whose images are prepared in a way that isn't supported.
    """
    file = weights_file(path)
    if is_torchscript(file):
        # Only OpenAI published CLIP this way, named as by open_clip and all of it trained with QuickGELU.
        state = read_torchscript(file)
        if "visual.conv1.weight" not in state or "visual.proj" not in state:
            raise ValueError("the TorchScript archive is no OpenAI CLIP with a ViT: it has no visual.proj")
        return Checkpoint(from_open_clip(state), quick_gelu=True)
    state = _tower_at_root(file, read_tensors(file))
    for tower, renamed in (("visual.", from_open_clip), ("vision_model.", from_hf)):
        if any(name.startswith(tower) for name in state):
            return Checkpoint(renamed(state), *trained_with(file, registered))
    some = ", ".join(list(state)[:3]) or "nothing"
    raise ValueError(f"{file} is no CLIP checkpoint with an image tower: it holds {some} ...")


def weights_file(path: Path) -> Path:
    """The file itself, or the one in a model folder. Raises ValueError where there is none."""
    if path.is_file():
        return path
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    wanted = f"a folder without {', '.join(FOLDER_FILES)}" if path.is_dir() else "no such file or folder"
    raise ValueError(f"{path}: {wanted}")


def checkpoint_files(path: Path) -> list[Path]:
    """The files that hold the tensors: those that a Hugging Face index names, else the file itself.

    Raises ValueError for an index that is damaged or names files outside its folder.
    """
    head = _head(path)
    if head[:1] != b"{" or head[8:] == b"{":  # safetensors begin with a length of 8 bytes
        return [path]
    try:
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no index of a checkpoint: it has no weight_map of file names") from error
    files = [path.with_name(Path(str(name)).name) for name in names]
    if missing := [str(name) for name, file in zip(names, files, strict=True) if not file.is_file()]:
        raise ValueError(f"{path} names {', '.join(missing)}: no such file beside it; download it again")
    return files


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(9)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, a torch checkpoint without its wrappers, or an index of either.

    Raises ValueError for any other file, and for a pickle with more than tensors, plain values and numpy's
    scalars: it is not executed.
    """
    return {name: tensor for file in checkpoint_files(path) for name, tensor in _read_file(file).items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    if _head(path)[8:] == b"{":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is a damaged safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals(_NUMPY_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly any type for a damaged file
        is_tar = tarfile.is_tarfile(path)
        if is_tar or _head(path)[:1] not in (b"P", b"\x80"):  # neither a zip nor a pickle
            kind = "a tar" if is_tar else f"no checkpoint (it begins with {_head(path)!r})"
            raise ValueError(f"{path} is {kind}: give a checkpoint, torch's or safetensors") from None
        raise ValueError(
            f"{path} is no checkpoint of plain tensors, and nothing else is loaded from a pickle "
            f'({_pickle_problem(error)}); where you trust it, keep its tensors: python -c "import torch; c = '
            f"torch.load('{path}', weights_only=False); torch.save(c.get('state_dict', c), 'plain.pt')\""
        ) from error
    return _unwrap(path, content)


def _pickle_problem(error: Exception) -> str:
    """The reason in torch's message, without its advice on how to execute the file."""
    text = str(error) or type(error).__name__
    if named := re.search(r"(?:GLOBAL|instance of class) (\w[\w.]*)", text):
        return f"it asks for {named[1]}"
    _, _, detail = text.partition("WeightsUnpickler error: ")
    return (detail or text).strip().splitlines()[0]


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict, without a trainer's entries around it and the prefixes that torch's wrappers add."""
    entries = content if isinstance(content, Mapping) else {}
    content = next((e for name in _WRAPPERS if isinstance(e := entries.get(name), Mapping)), content)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    # torch.compile names its wrapper wherever it is, DistributedDataParallel's is the outermost.
    names = {str(name).replace("_orig_mod.", ""): name for name in content}
    tensors = {name: content[key] for name, key in names.items() if isinstance(content[key], Tensor)}
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    if content and not tensors:
        raise ValueError(f"{path} holds no tensors: its entries are {', '.join(map(str, list(content)[:8]))}")
    return tensors


def _tower_at_root(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state named as CLIP's own, where a wrapper's prefix precedes it or it is an image tower alone.

    Raises ValueError for several towers, such as a student and its teacher.
    """
    found = [
        (match[1], added)
        for mark, added in _TOWERS.items()
        for name in state
        if (match := re.fullmatch(f"({_PREFIX}){re.escape(mark)}", name))
    ]
    if not found:
        return state
    (root, added), *others = found
    if others:
        roots = ", ".join(repr(prefix) for prefix, _ in found)
        raise ValueError(f"{path} holds several image towers, below {roots}: save the one to use alone")
    return {added + name.removeprefix(root): state[name] for name in state if name.startswith(root)}


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the `visual.` part of an open_clip (or OpenAI) state dict."""
    vision = {name: tensor for name, tensor in state.items() if name.startswith("visual.")}
    return {_renamed(name, _OPEN_CLIP): tensor for name, tensor in vision.items()}


def from_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the image tower of a Hugging Face CLIPModel or CLIPVisionModelWithProjection."""
    vision = {name: tensor for name, tensor in state.items() if name.startswith("vision_model.")}
    vision.pop("vision_model.embeddings.position_ids", None)  # a constant that older versions stored
    renamed = {_renamed(name, _HF): tensor for name, tensor in vision.items()}
    if "visual_projection.weight" in state:
        renamed["projection"] = state["visual_projection.weight"].T.contiguous()
    return dict(_join_qkv(renamed))


def _join_qkv(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """q, k and v of each block as one tensor, in this order; everything else as it is."""
    for name, tensor in state.items():
        before, _, kind = name.partition(".self_attn.q_proj.")
        parts = [f"{before}.self_attn.{part}_proj.{kind}" for part in "qkv"]
        if kind and all(part in state for part in parts):
            yield f"{before}.qkv.{kind}", torch.cat([state[part] for part in parts])
        elif not any(
            name.endswith((f".self_attn.{p}_proj.weight", f".self_attn.{p}_proj.bias")) for p in "kv"
        ):
            yield name, tensor


def _renamed(name: str, parts: Mapping[str, str]) -> str:
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return name


def trained_with(
    file: Path, registered: Callable[[], Mapping[str, Any]] = dict
) -> tuple[bool | None, tuple[RGB, RGB] | None]:
    """See `Checkpoint`: `quick_gelu` and `statistics`, by the configuration in the folder of `file`.

    What that doesn't say is from open_clip's entry for the weights, if it has one. Raises ValueError for
    images prepared in a way that isn't supported.
    """
    ours = _config_beside(file, "open_clip_config.json").get("preprocess_cfg", {})
    theirs = _config_beside(file, "preprocessor_config.json")
    quick_gelu, statistics = _quick_gelu_beside(file), _statistics(str(file.parent), ours, theirs)
    if None in (quick_gelu, statistics) and (known := registered()):
        if quick_gelu is None:
            quick_gelu = bool(known.get("quick_gelu", False))  # open_clip's own reading
        statistics = statistics or _statistics("the checkpoint", known, {})
    return quick_gelu, statistics


def _quick_gelu_beside(file: Path) -> bool | None:
    """The activation by the configuration in the same folder; None where there is none."""
    for name in ("open_clip_config.json", "config.json"):
        config = _config_beside(file, name)
        if "model_cfg" in config:
            return bool(config["model_cfg"].get("quick_gelu", False))
        if str(config.get("model_type", "")).startswith("clip"):
            return bool(config.get("vision_config", config).get("hidden_act", "quick_gelu") == "quick_gelu")
    return None


def _statistics(who: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[RGB, RGB] | None:
    """Mean and std of pixels by open_clip's and Hugging Face's configuration; None where neither says.

    They may differ from OpenAI's: LAION's ViT-L-14 on LAION-2B was trained with 0.5 and 0.5. Raises
    ValueError for any other preparation than a bicubic resize of the shorter side and a centre crop.
    """
    given = {
        "resize_mode": (ours.get("resize_mode"), "shortest"),
        "interpolation": (ours.get("interpolation"), "bicubic"),
        "resample": (theirs.get("resample"), _PIL_BICUBIC),
        "do_resize": (theirs.get("do_resize"), True),
        "do_center_crop": (theirs.get("do_center_crop"), True),
        "size": (_sides(theirs.get("size")), "shortest_edge"),
    }
    for name, (value, supported) in given.items():
        if value not in (None, supported):
            raise ValueError(
                f"{who} prepares its pixels with {name} {value}, and only {supported} is supported: "
                "scores would be of other pixels than it was trained on; give another checkpoint"
            )
    found = (ours.get("mean"), ours.get("std")), (theirs.get("image_mean"), theirs.get("image_std"))
    return next(((_rgb(mean), _rgb(std)) for mean, std in found if mean and std), None)


def _sides(size: object) -> str | None:
    """The names of a Hugging Face processor's `size`; a plain number is the shorter side."""
    return " and ".join(sorted(size)) if isinstance(size, dict) else None


def _rgb(values: Sequence[float]) -> RGB:
    red, green, blue = map(float, values)
    return red, green, blue


def _config_beside(file: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of the same folder; empty where there is none."""
    try:
        config = json.loads(file.with_name(name).read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


# TorchScript archives, the format of OpenAI's weights. `torch.load(weights_only=True)` refuses them, and
# `torch.jit.load` compiles their code and runs its `__setstate__` methods. So they are read here: `data.pkl`
# describes the tree of modules, and each file in `data/` holds a storage. Each global that the pickle names
# is replaced by one of the inert stand-ins below, so none of its code runs.

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
    """Stand-in for an instance of any class of the archive: it only holds the attributes."""

    attributes: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive: a zip with a program beside its pickles."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # no zip, or a damaged one, which raises many types; the next reader reports it
        return False
    return any("/code/" in name for name in names) and any(name.endswith("/data.pkl") for name in names)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of an archive's module tree by their dotted names, on the CPU.

    Raises ValueError for a damaged archive, or a pickle with more than modules, tensors and plain values.
    """
    with zipfile.ZipFile(path) as archive:
        # In a folder that is named after the file it was first saved as.
        pickle_name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        try:
            with archive.open(pickle_name) as stream:
                root = _Unpickler(stream, archive, pickle_name.removesuffix("data.pkl")).load()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is a damaged archive ({error}): download it again") from error
        except Exception as error:  # the unpickler raises nearly any type for a damaged file
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
    """Accepts the globals of TorchScript's pickles and raises for any other."""

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
