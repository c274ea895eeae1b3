"""Hugging Face's CLIP with our image tower's weights, for peers that run that one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dali_aesthetic.score.spec import TowerSpec
from dali_aesthetic.score.weights import load_tower

_WHOLE = {
    "patch_embed.weight": "vision_model.embeddings.patch_embedding.weight",
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
}
_PARTS = {
    "ln_pre.": "vision_model.pre_layrnorm.",
    "ln_post.": "vision_model.post_layernorm.",
    "blocks.": "vision_model.encoder.layers.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".proj.": ".self_attn.out_proj.",
    ".fc1.": ".mlp.fc1.",
    ".fc2.": ".mlp.fc2.",
}


def hf_clip(spec: TowerSpec, weights: str, device: str) -> tuple[Any, Any]:
    """`CLIPModel` in float32 on the device, and the image processor that goes with it.

    In favour of the peers: matrix products in TF32 (see `hf_precision`), and the processor on torchvision,
    two to three times as fast as the one on Pillow, the default of 4.x.
    """
    from transformers import CLIPConfig, CLIPModel

    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    vision = {
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "hidden_act": "quick_gelu" if spec.quick_gelu else "gelu",
    }
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    # On meta, as the weights replace it; buffers that aren't in the state must then be set.
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=spec.embed_dim))
    model = model.to_empty(device="cpu")
    model.vision_model.embeddings.position_ids = torch.arange(spec.tokens)[None]
    tower, _ = load_tower(spec.name, weights, None)
    missing, unknown = model.load_state_dict(hf_state(tower.state_dict()), strict=False, assign=True)
    absent = [name for name in missing if name.startswith("vis")]
    assert not unknown, unknown
    assert not absent, absent
    size = {"shortest_edge": spec.image_size}
    crop = {"height": spec.image_size, "width": spec.image_size}
    processor = _processor_type()(size=size, crop_size=crop, image_mean=spec.mean, image_std=spec.std)
    return _Tensors(model.to(device).eval()), processor


def hf_precision(device: str) -> str:
    """The precision of `hf_clip` on a device."""
    return "fp32, products in TF32" if device.startswith("cuda") else "fp32"


def _processor_type() -> Any:
    """The processor on torchvision, which lost its suffix with 5.0."""
    import transformers

    old = int(transformers.__version__.partition(".")[0]) < 5
    return transformers.CLIPImageProcessorFast if old else transformers.CLIPImageProcessor


class _Tensors:
    """Returns image features as a tensor: newer versions of the library wrap it in an object."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        features: Any = self._model.get_image_features(pixel_values=pixel_values)
        tensor: Tensor = features if isinstance(features, Tensor) else features.pooler_output
        return tensor


def hf_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tower's tensors under Hugging Face's names."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "projection":
            renamed["visual_projection.weight"] = tensor.T.contiguous()
        elif ".qkv." in name:
            before, _, kind = name.partition(".qkv.")
            for part, piece in zip("qkv", torch.chunk(tensor, 3), strict=True):
                renamed[_renamed(f"{before}.self_attn.{part}_proj.{kind}")] = piece.contiguous()
        else:
            renamed[_renamed(name)] = tensor
    return renamed


def _renamed(name: str) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    for ours, theirs in _PARTS.items():
        name = name.replace(ours, theirs)
    return name
