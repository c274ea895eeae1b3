"""The shape of a CLIP vision tower, by its open_clip name."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RGB = tuple[float, float, float]

OPENAI_MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: RGB = (0.26862954, 0.26130258, 0.27577711)
"""Channel statistics of pixels in [0, 1] that CLIP was trained with (openai/CLIP, `clip.py`)."""

HEADS = ("laion-v2", "laion-v1", "random")
"""The heads that have a name."""
_LETTERS = re.compile("[^a-z0-9]")

_DIMENSIONS = frozenset({"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"})
"""The fields of open_clip's `vision_cfg` that size the plain ViT of `clip.py`; others change its layers."""

_INERT = frozenset({"output_tokens", "patch_dropout"})
"""Fields of `vision_cfg` that don't affect `encode_image` at inference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSpec:
    """The shape of a CLIP ViT and the pixels it expects.

    `image_size` and `patch_size` are pixels, `width`, `mlp_width` and `embed_dim` features. `mean` and
    `std` are per channel, for pixels in [0, 1].
    """

    name: str
    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    embed_dim: int
    quick_gelu: bool
    mean: RGB = OPENAI_MEAN
    std: RGB = OPENAI_STD

    def __post_init__(self) -> None:
        """Raises ValueError where the sizes do not fit together."""
        if self.image_size % self.patch_size:
            raise ValueError(
                f"{self.name}: patches of {self.patch_size} do not tile {self.image_size} pixels"
            )
        if self.width % self.heads:
            raise ValueError(f"{self.name}: width {self.width} is not a multiple of {self.heads} heads")

    @property
    def tokens(self) -> int:
        """Tokens of an image: its patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    def with_quick_gelu(self, quick_gelu: bool) -> TowerSpec:
        """The same tower with the activation that a checkpoint is known to have been trained with."""
        return dataclasses.replace(self, quick_gelu=quick_gelu)


def spec_of(encoder: str) -> TowerSpec:
    """The spec of an open_clip ViT such as `ViT-L-14`, `ViT-B-32-quickgelu`, `ViT-H-14`.

    Raises ValueError for a name that open_clip doesn't know or whose image tower isn't the plain CLIP ViT
    (ResNets, ConvNeXts, timm and SigLIP towers, attention pooling, average pooling).
    """
    # A plain look-up: open_clip's own also accepts `hf-hub:` and `local-dir:` names, and downloads.
    config = model_config(encoder) if ":" not in encoder else None
    if config is None:
        raise ValueError(
            f"encoder {encoder!r}: open_clip has no such model{meant('encoder', encoder)}; use a ViT such as "
            "ViT-L-14, ViT-B-32, ViT-B-32-quickgelu or ViT-H-14 (`open_clip.list_models()` names them all)"
        )
    vision = config["vision_cfg"]
    _refuse_other_towers(encoder, vision)
    width, head_width = vision.get("width", 768), vision.get("head_width", 64)
    return TowerSpec(
        name=encoder,
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 16),
        width=width,
        layers=vision.get("layers", 12),
        heads=width // head_width,
        mlp_width=int(width * vision.get("mlp_ratio", 4.0)),
        embed_dim=config["embed_dim"],
        quick_gelu=bool(config.get("quick_gelu", False)),
    )


def meant(option: str, given: str, encoder: str = "") -> str:
    """In brackets, the known names near to a wrong one that was `given` as head, encoder or weights.

    A name of another option, and weights of another encoder, are told as such. "" if none is near.
    """
    import open_clip  # slow: see `model_config`

    tags = {tag for _, tag in open_clip.list_pretrained()}
    known = {"head": set(HEADS), "encoder": set(open_clip.list_models()), "weights": tags | {"random"}}
    if option == "weights":
        known[option] = {"random", *open_clip.list_pretrained_tags_by_model(encoder)}
        if given in tags:
            models = ", ".join(open_clip.list_pretrained_models_by_tag(given))
            return f" (they are weights of {models}; {encoder} has {', '.join(sorted(known[option]))})"
    for closeness in (1.0, 0.6):
        if near := _near(given, known[option], closeness):
            return f" (did you mean {' or '.join(near)}?)"
        for other in (name for name in known if name != option):
            if near := _near(given, known[other], max(closeness, 0.85)):
                return f" ({near[0]} is a name for --{other})"
    return ""


def _near(given: str, names: Iterable[str], closeness: float) -> list[str]:
    """At most two of `names` that are close to it but for case and punctuation."""
    plain = {_LETTERS.sub("", name.casefold()): name for name in sorted(names)}
    return [
        plain[n] for n in difflib.get_close_matches(_LETTERS.sub("", given.casefold()), plain, 2, closeness)
    ]


def model_config(encoder: str) -> Mapping[str, Any] | None:
    """open_clip's configuration of a model, or None where it has none of that name.

    Read from the file in its package: importing open_clip takes seconds in every process of a run (it imports
    torchvision, timm and transformers). Where it is imported already, it is asked, as models may have been
    added to it.
    """
    package = importlib.util.find_spec("open_clip") if "open_clip" not in sys.modules else None
    configs = Path(package.origin).with_name("model_configs") if package and package.origin else None
    if configs is None or not configs.is_dir():
        import open_clip

        asked: Mapping[str, Any] | None = open_clip.get_model_config(encoder)
        return asked
    file = {path.stem: path for path in configs.glob("*.json")}.get(encoder)
    config: Mapping[str, Any] = json.loads(file.read_text()) if file else {}
    return config if {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys() else None


def _refuse_other_towers(encoder: str, vision: Mapping[str, Any]) -> None:
    """Raises ValueError where the image tower is not the plain CLIP ViT, saying why and what to use."""
    if "timm_model_name" in vision:
        why = f"its image tower is timm's {vision['timm_model_name']}"
    elif not isinstance(vision.get("layers", 12), int):
        why = "its image tower is a ResNet"
    elif other := {k: v for k, v in vision.items() if v and k not in _DIMENSIONS | _INERT}:
        why = "its image tower has " + ", ".join(f"{k}={v!r}" for k, v in sorted(other.items()))
    else:
        return
    raise ValueError(
        f"encoder {encoder!r} is not a plain CLIP ViT ({why}); use one such as ViT-L-14, ViT-B-32, "
        "ViT-B-16 or ViT-H-14"
    )
