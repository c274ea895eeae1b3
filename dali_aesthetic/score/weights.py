"""From what the user names to towers and heads: `openai`, `random:SEED`, `laion-v2`, or a path."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dali_aesthetic.score.checkpoints import read_clip, read_tensors, weights_file
from dali_aesthetic.score.clip import VisionTower
from dali_aesthetic.score.head import Head, head_from_state
from dali_aesthetic.score.published import (
    LAION_V1,
    LAION_V2,
    OPENAI,
    OPENAI_SHA256,
    PublishedFile,
    ResolvedFile,
    WeightsUnavailable,
    hash_file,
    openai_model,
)
from dali_aesthetic.score.published import download as _download
from dali_aesthetic.score.published import fetch as _fetch
from dali_aesthetic.score.published import find as _find
from dali_aesthetic.score.published import resolve as _resolve
from dali_aesthetic.score.spec import TowerSpec, model_config, spec_of

__all__ = [
    "ResolvedFile",
    "WeightsUnavailable",
    "download",
    "fetch_tower",
    "load_head",
    "load_tower",
    "present",
]

_LOG = logging.getLogger(__name__)
_OWN_NAME = re.compile(r"(?P<name>[A-Za-z][\w-]*)=(?P<head>.+)")


def fetch_tower(encoder: str, weights: str, model_dir: Path | None) -> None:
    """Have the tower's weights on this machine, read later: published ones are downloaded where they aren't.

    Raises as `load_tower`, for what is wrong without a look into the file.
    """
    spec_of(encoder)
    if _seed(weights) is not None:
        return
    if files := _published_tower(encoder, weights):
        _fetch(weights, files, model_dir, _command("--encoder", encoder, "--weights", weights))
    else:
        weights_file(Path(weights).expanduser())


def load_tower(encoder: str, weights: str, model_dir: Path | None) -> tuple[VisionTower, ResolvedFile]:
    """The tower of an open_clip ViT with weights `openai`, `random[:SEED]` or a path; float32, on the CPU.

    Raises ValueError for a name, file or folder that doesn't fit, WeightsUnavailable for published weights
    that can't be had.
    """
    spec = spec_of(encoder)
    seed = _seed(weights)
    if seed is not None:
        return VisionTower.from_state(spec, random_tower_state(spec, seed)), _random(seed)
    files = _published_tower(encoder, weights)
    if files:
        path, file = _resolve(weights, files, model_dir, _command("--encoder", encoder, "--weights", weights))
    else:
        path = weights_file(Path(weights).expanduser())
        file = _own(path.name, path)
    checkpoint = read_clip(path)
    quick_gelu = True if file.sha256 in OPENAI_SHA256 else checkpoint.quick_gelu
    if quick_gelu not in (None, spec.quick_gelu):
        _LOG.info("%s was trained with %s: used", path, "QuickGELU" if quick_gelu else "GELU")
        spec = spec.with_quick_gelu(not spec.quick_gelu)
    if quick_gelu is None and model_config(other := f"{encoder}-quickgelu"):
        _LOG.warning("%s doesn't say which GELU it has: GELU, by the name %s; else %s", path, encoder, other)
    if checkpoint.statistics not in (None, (spec.mean, spec.std)):
        _LOG.info("%s was trained on pixels of mean and std %s: used", path, checkpoint.statistics)
        spec = spec.with_statistics(*checkpoint.statistics)
    _check_fits(checkpoint.state, spec, path)
    return VisionTower.from_state(spec, checkpoint.state), file


def load_head(head: str, encoder: str, embed_dim: int, model_dir: Path | None) -> tuple[Head, ResolvedFile]:
    """The head `laion-v2`, `laion-v1`, `random[:SEED]`, or of a path, which may end in `:relu` or `:linear`.

    The suffix says what lies between the layers of an MLP whose file doesn't tell. A head by path goes by
    the name of its file; any head goes by the name put before it, as in `punsafe=nsfw.pth`. Raises as
    `load_tower`.
    """
    if own := _OWN_NAME.fullmatch(head):
        loaded, file = load_head(own["head"], encoder, embed_dim, model_dir)
        return Head(own["name"], loaded.mlp), file
    seed = _seed(head)
    if seed is not None:
        return Head(f"random:{seed}", head_from_state(random_head_state(embed_dim, seed))), _random(seed)
    files = _published_head(encoder, head)
    if files:
        path, file = _resolve(head, files, model_dir, _command("--encoder", encoder, "--head", head))
        return Head(head, head_from_state(read_tensors(path), relu=False)), file
    plain, _, suffix = head.rpartition(":")
    relu = {"relu": True, "linear": False}.get(suffix) if plain else None
    path = weights_file(Path(head if relu is None else plain).expanduser())
    try:
        mlp = head_from_state(read_tensors(path), relu)
    except ValueError as error:
        raise ValueError(f"head {head!r}: {error}") from error
    return Head(path.stem, mlp), _own(path.name if relu is None else f"{path.name}:{suffix}", path)


def download(encoder: str, weights: str, heads: Sequence[str], model_dir: Path | None) -> list[ResolvedFile]:
    """Have the published weights of encoder and heads on this machine, in `model_dir` where given.

    Random weights and paths need nothing. Raises ValueError for names that aren't known, WeightsUnavailable
    for files that can't be had.
    """
    spec_of(encoder)
    wanted = [(weights, _published_tower(encoder, weights), ("--weights", weights))]
    plain = [_unnamed(head) for head in heads]
    wanted += [(head, _published_head(encoder, head), ("--head", head)) for head in plain]
    return [
        _download(name, files, model_dir, _command("--encoder", encoder, *flags))[1]
        for name, files, flags in wanted
        if files
    ]


def present(
    encoder: str, weights: str, heads: Sequence[str], model_dir: Path | None
) -> list[tuple[str, ResolvedFile | WeightsUnavailable]]:
    """Each weight that encoder and heads need, as found on this machine, or how to get it. Downloads nothing.

    A path must be a file that can be read (its content isn't looked at). Raises as `download`.
    """
    spec_of(encoder)
    wanted = [(weights, _published_tower(encoder, weights), "--weights")]
    plain = [_unnamed(head) for head in heads]
    wanted += [(head, _published_head(encoder, head), "--head") for head in plain]
    return [
        (
            name,
            _find(name, files, model_dir, _command("--encoder", encoder, flag, name))
            if files
            else _given(name),
        )
        for name, files, flag in wanted
    ]


def _unnamed(head: str) -> str:
    """A head without the name put before it."""
    own = _OWN_NAME.fullmatch(head)
    return own["head"] if own else head


def _given(name: str) -> ResolvedFile:
    """Random weights, or a user's own file."""
    seed = _seed(name)
    if seed is not None:
        return _random(seed)
    plain, _, suffix = name.rpartition(":")
    path = weights_file(Path(plain if plain and suffix in ("relu", "linear") else name).expanduser())
    return _own(path.name, path)


def _published_tower(encoder: str, weights: str) -> tuple[PublishedFile, ...]:
    """The files of `openai`; none for a path. Raises ValueError for an encoder OpenAI didn't train."""
    if weights != "openai":
        return ()
    if openai_model(encoder) not in OPENAI:
        raise ValueError(
            f"OpenAI published no weights for encoder {encoder!r}, only for {', '.join(OPENAI)}; "
            "give the path of a checkpoint with --weights"
        )
    return OPENAI[openai_model(encoder)]


def _published_head(encoder: str, head: str) -> tuple[PublishedFile, ...]:
    """The files of `laion-v2` or `laion-v1`; none for a path. Raises ValueError for the wrong encoder."""
    model = openai_model(encoder)
    if head == "laion-v2":
        trained_on: Sequence[str] = ("ViT-L-14",)
    elif head == "laion-v1":
        trained_on = tuple(LAION_V1)
    else:
        return ()
    if model not in trained_on:
        raise ValueError(
            f"head {head!r} was trained on embeddings of {' or '.join(trained_on)}, not of {encoder!r}; take "
            "another encoder, or the path of a head that was trained for this one"
        )
    return LAION_V2 if head == "laion-v2" else LAION_V1[model]


def _seed(name: str) -> int | None:
    """The seed of `random[:SEED]`, None for any other name. Raises ValueError for another seed."""
    kind, _, seed = name.partition(":")
    if kind != "random":
        return None
    if seed and not seed.isdecimal():
        raise ValueError(f"{name!r}: the seed of random weights is a number, as in random:0")
    return int(seed or 0)


def _random(seed: int) -> ResolvedFile:
    return ResolvedFile(name=f"random:{seed}", path="", sha256="", source="random")


def _own(name: str, path: Path) -> ResolvedFile:
    return ResolvedFile(name=name, path=str(path), sha256=hash_file(path), source=str(path))


def _command(*flags: str) -> str:
    return " ".join(["dali-aesthetic download", *flags])


def _check_fits(state: dict[str, Tensor], spec: TowerSpec, path: Path) -> None:
    """Raises ValueError where the tensors are not those of the encoder, naming them."""
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in VisionTower(spec).state_dict().items()}
    problems = [f"lacks {name}" for name in wanted if name not in state]
    problems += [f"has {name}, which the encoder doesn't" for name in state if name not in wanted]
    problems += [
        f"has {name} {list(state[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"{path} is no checkpoint of encoder {spec.name!r}: it {'; '.join(problems[:5])}{more}; "
            "name its own encoder with --encoder"
        )


# FOLDED dali_aesthetic/score/random_init.py: Towers and heads with random weights: for tests, benchmarks and a demo without downloads.


class _Uniform:
    """Uniform random tensors, float32 on the CPU, from an own generator.

    Uniform only: torch's normal samples differ in their last bits between CPUs (its vectorised code takes
    another logarithm), these are the same on every machine. The global generator is not touched.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def bound(self, bound: float, *shape: int) -> Tensor:
        """Values in [-bound, bound)."""
        return torch.rand(*shape, generator=self._generator).mul_(2).sub_(1).mul_(bound)

    def std(self, std: float, *shape: int) -> Tensor:
        """Values of mean zero and this standard deviation."""
        return self.bound(math.sqrt(3) * std, *shape)


def random_tower_state(spec: TowerSpec, seed: int = 0) -> dict[str, Tensor]:
    """Weights for `VisionTower.from_state`, at the scales that open_clip initialises its own with."""
    draw = _Uniform(seed)
    width, patch = spec.width, spec.patch_size
    scale = width**-0.5
    state = {
        "patch_embed.weight": draw.bound((3 * patch * patch) ** -0.5, width, 3, patch, patch),
        "class_embedding": draw.std(scale, width),
        "positional_embedding": draw.std(scale, spec.tokens, width),
        "projection": draw.std(scale, width, spec.embed_dim),
        **_layer_norm("ln_pre", width),
        **_layer_norm("ln_post", width),
    }
    for index in range(spec.layers):
        state |= {f"blocks.{index}.{name}": value for name, value in _random_block(spec, draw).items()}
    return state


def _random_block(spec: TowerSpec, draw: _Uniform) -> dict[str, Tensor]:
    width, mlp_width = spec.width, spec.mlp_width
    return {
        **_layer_norm("ln_1", width),
        "qkv.weight": draw.bound(math.sqrt(6 / (4 * width)), 3 * width, width),
        "qkv.bias": torch.zeros(3 * width),
        "proj.weight": draw.bound(width**-0.5, width, width),
        "proj.bias": torch.zeros(width),
        **_layer_norm("ln_2", width),
        "fc1.weight": draw.bound(width**-0.5, mlp_width, width),
        "fc1.bias": draw.bound(width**-0.5, mlp_width),
        "fc2.weight": draw.bound(mlp_width**-0.5, width, mlp_width),
        "fc2.bias": draw.bound(mlp_width**-0.5, width),
    }


def _layer_norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def random_head_state(embed_dim: int, seed: int = 0) -> dict[str, Tensor]:
    """A linear head for unit embeddings whose scores spread around 5, as LAION's do."""
    # Seeded apart from the tower of the same seed, whose first numbers it would repeat.
    draw = _Uniform(seed + 1_000_003)
    return {"weight": draw.std(18 * embed_dim**-0.5, 1, embed_dim), "bias": torch.full((1,), 5.0)}
