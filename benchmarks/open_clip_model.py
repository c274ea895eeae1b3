"""open_clip's image tower with our weights: the reference, and the model of the peers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dali_aesthetic.score.spec import TowerSpec
from dali_aesthetic.score.weights import load_tower

_WHOLE = {
    "patch_embed.weight": "conv1.weight",
    "class_embedding": "class_embedding",
    "positional_embedding": "positional_embedding",
    "projection": "proj",
}
_PARTS = {
    "blocks.": "transformer.resblocks.",
    ".qkv.": ".attn.in_proj_",
    ".proj.": ".attn.out_proj.",
    ".fc1.": ".mlp.c_fc.",
    ".fc2.": ".mlp.c_proj.",
}


def open_clip_tower(spec: TowerSpec, weights: str) -> nn.Module:
    """`visual` of `open_clip.create_model`, with the weights of that name (`random:0`, a path, `openai`)."""
    import open_clip

    # On meta: the text tower isn't needed and would take as long to initialise.
    with torch.device("meta"):
        model: Any = open_clip.create_model(spec.name, pretrained=None, device="meta")
    visual: nn.Module = model.visual.to_empty(device="cpu")
    tower, _ = load_tower(spec.name, weights, None)
    visual.load_state_dict(open_clip_state(tower.state_dict()), assign=True)
    return visual.requires_grad_(False).eval()


def saved_weights(encoder: str, weights: str, folder: Path) -> str:
    """The path of a tower's weights; random ones (`random:0`) are saved in `folder`, unless the file exists.

    The file has open_clip's names. Drawing random weights takes a core
    ten seconds, which would count as a start, and is worse with many processes side by side.
    """
    if not weights.startswith("random"):
        return weights
    file = folder.resolve() / f"{encoder}-{weights.replace(':', '-')}.safetensors"
    if not file.exists():
        tower, _ = load_tower(encoder, weights, None)
        state = open_clip_state(tower.state_dict())
        partial = file.with_suffix(".partial")  # a partial file must not be found later
        safetensors.torch.save_file({f"visual.{k}": part.contiguous() for k, part in state.items()}, partial)
        partial.replace(file)
    return str(file)


def open_clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tower's tensors under the names of open_clip's `visual`."""
    return {_renamed(name): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    for ours, theirs in _PARTS.items():
        name = name.replace(ours, theirs)
    return name
