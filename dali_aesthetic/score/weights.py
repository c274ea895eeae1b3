"""Towers and heads by the names that users give: `openai`, `random:SEED`, `laion-v2`, the hub, or a path."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dali_aesthetic.score import hub, published
from dali_aesthetic.score.checkpoints import (
    checkpoint_files,
    read_clip,
    read_tensors,
    trained_with,
    weights_file,
)
from dali_aesthetic.score.clip import VisionTower
from dali_aesthetic.score.head import Head, head_from_state
from dali_aesthetic.score.published import NotHere, PublishedWeights, ResolvedFile, WeightsUnavailable
from dali_aesthetic.score.spec import HEADS, TowerSpec, meant, model_config, spec_of

_LOG = logging.getLogger(__name__)
_NAMED_HEAD = re.compile(r"(?P<name>[A-Za-z][\w-]*)=(?P<head>.+)")


def fetch_tower(encoder: str, weights: str, model_dir: Path | None) -> None:
    """Downloads the tower's published weights if they are not on this machine.

    Raises as `load_tower`, for errors that show without reading the file.
    """
    spec_of(encoder)
    if _seed(weights) is not None:
        return
    if known := _published_tower(encoder, weights):
        published.fetch(known, model_dir)
    else:
        _given_tower(encoder, weights, model_dir)


def load_tower(encoder: str, weights: str, model_dir: Path | None) -> tuple[VisionTower, ResolvedFile]:
    """The tower of an open_clip ViT with weights `openai`, `random[:SEED]`, of the hub or a path, in
    float32 on the CPU. Mean, std and GELU are those that its configuration or open_clip's registry names.

    Raises ValueError for a name, file or folder that doesn't fit, WeightsUnavailable for published weights
    that are neither on this machine nor can be downloaded.
    """
    spec = spec_of(encoder)
    seed = _seed(weights)
    if seed is not None:
        return VisionTower.from_state(spec, random_tower_state(spec, seed)), _random(seed)
    registered: Callable[[], Mapping[str, Any]] = dict
    if known := _published_tower(encoder, weights):
        file = published.resolve(known, model_dir)
        path = Path(file.path)
    else:
        path, repo = _given_tower(encoder, weights, model_dir)
        file = _own(weights if repo else path.name, path)
        if repo:
            file = replace(file, source=hub.repo_source(repo, path))
            registered = partial(hub.registered, encoder, weights)
    checkpoint = read_clip(path, registered)
    quick_gelu = True if file.sha256 in published.OPENAI_SHA256 else checkpoint.quick_gelu
    if quick_gelu not in (None, spec.quick_gelu):
        _LOG.info("%s was trained with %s: used", path, "QuickGELU" if quick_gelu else "GELU")
        spec = spec.with_quick_gelu(not spec.quick_gelu)
    if quick_gelu is None and model_config(other := f"{encoder}-quickgelu"):
        _LOG.warning("%s doesn't say which GELU it has: GELU, by the name %s; else %s", path, encoder, other)
    if checkpoint.statistics not in (None, (spec.mean, spec.std)):
        _LOG.info("%s was trained on pixels of mean and std %s: used", path, checkpoint.statistics)
        mean, std = checkpoint.statistics
        spec = replace(spec, mean=mean, std=std)
    _check_fits(checkpoint.state, spec, path)
    return VisionTower.from_state(spec, checkpoint.state), file


def known_spec(encoder: str, weights: str, model_dir: Path | None) -> TowerSpec:
    """The spec that `load_tower` will find, as far as it shows without reading tensors.

    Downloads nothing. Raises ValueError for images prepared in a way that isn't supported.
    """
    spec = spec_of(encoder)
    if weights == "openai":
        return spec.with_quick_gelu(True)
    if _seed(weights) is not None:
        return spec
    repo = _repo(encoder, weights)
    path = hub.find_repo(repo, model_dir) if repo else Path(weights).expanduser()
    if repo is None and path is not None and path.is_dir():
        path = weights_file(path)
    registered = partial(hub.registered, encoder, weights) if repo else dict
    quick_gelu, statistics = trained_with(path or Path("/none"), registered)
    mean, std = statistics or (spec.mean, spec.std)
    return replace(spec, mean=mean, std=std, quick_gelu=spec.quick_gelu if quick_gelu is None else quick_gelu)


def _given_tower(encoder: str, weights: str, model_dir: Path | None) -> tuple[Path, hub.HubRepo | None]:
    """A checkpoint by path, with None, or of a repository of the hub."""
    if repo := _repo(encoder, weights):
        if found := hub.find_repo(repo, model_dir):
            return found, repo
        known_spec(encoder, weights, model_dir)  # raises before gigabytes are downloaded
        return hub.download_repo(repo, weights, _download_command(encoder, weights), None), repo
    try:
        return weights_file(Path(weights).expanduser()), None
    except ValueError as error:
        raise ValueError(
            f"weights {weights!r}: {error}{meant('weights', weights, encoder)}; give openai, random[:SEED], "
            "hf-hub:ORG/REPO[@REVISION], a tag of open_clip's or a path"
        ) from error


def _repo(encoder: str, weights: str) -> hub.HubRepo | None:
    return None if Path(weights).expanduser().exists() else hub.hub_repo(encoder, weights)


def _download_command(encoder: str, weights: str) -> str:
    return f"dali-aesthetic download --encoder {encoder} --weights {weights}"


def head_name(head: str) -> str:
    """The name of the head that `load_head` loads."""
    if named := _NAMED_HEAD.fullmatch(head):
        return named["name"]
    if (seed := _seed(head)) is not None:
        return f"random:{seed}"
    path = re.sub(":(relu|linear)$", "", head)
    return Path(path).stem if Path(path).suffix else path


def load_head(head: str, encoder: str, embed_dim: int, model_dir: Path | None) -> tuple[Head, ResolvedFile]:
    """The head `laion-v2`, `laion-v1`, `random[:SEED]`, or of a path, which may end in `:relu` or `:linear`.

    The suffix says what lies between the layers of an MLP whose file doesn't tell. A head by path has the
    name of its file; a name put before any head replaces its own, as in `punsafe=nsfw.pth`. Raises as
    `load_tower`.
    """
    if named := _NAMED_HEAD.fullmatch(head):
        loaded, file = load_head(named["head"], encoder, embed_dim, model_dir)
        return Head(named["name"], loaded.mlp), file
    seed = _seed(head)
    if seed is not None:
        return Head(f"random:{seed}", head_from_state(random_head_state(embed_dim, seed))), _random(seed)
    if known := _published_head(encoder, head):
        file = published.resolve(known, model_dir)
        return Head(head, head_from_state(read_tensors(Path(file.path)), relu=False)), file
    try:
        plain, _, suffix = head.rpartition(":")
        if not plain or suffix not in ("relu", "linear"):
            plain, suffix = head, ""
        path = weights_file(Path(plain).expanduser())
        relu = {"relu": True, "linear": False}.get(suffix)
        mlp = head_from_state(read_tensors(path), relu)
    except ValueError as error:
        named_wrong = "" if Path(plain).expanduser().exists() else meant("head", plain)
        raise ValueError(f"head {head!r}: {error}{named_wrong}") from error
    return Head(path.stem, mlp), _own(f"{path.name}:{suffix}" if suffix else path.name, path)


def download(encoder: str, weights: str, heads: Sequence[str], model_dir: Path | None) -> list[ResolvedFile]:
    """Downloads the published weights of encoder and heads where they are missing, to `model_dir` if given.

    Random weights and paths need nothing. Raises ValueError for unknown names, WeightsUnavailable for files
    that can't be downloaded.
    """
    needed = [known for _, known in _needed(encoder, weights, heads) if known]
    files = [published.download(known, model_dir) for known in needed]
    if weights != "openai" and _seed(weights) is None and (repo := _repo(encoder, weights)):
        path = hub.find_repo(repo, model_dir)
        if path is None or (model_dir and not path.is_relative_to(model_dir)):
            path = hub.download_repo(repo, weights, _download_command(encoder, weights), model_dir)
        files.insert(0, replace(_own(weights, path), source=hub.repo_source(repo, path)))
    return files


def present(
    encoder: str, weights: str, heads: Sequence[str], model_dir: Path | None
) -> list[tuple[str, ResolvedFile | WeightsUnavailable]]:
    """The name of each weight that encoder and heads need, with its file on this machine or how to get it.

    Downloads nothing. A checkpoint or head of the user's is read as a run reads it. Raises as `load_tower`.
    """
    (_, tower), *others = _needed(encoder, weights, heads)
    embed_dim, seed = spec_of(encoder).embed_dim, _seed(weights)
    file: ResolvedFile | WeightsUnavailable
    if tower:
        file = published.find(tower, model_dir)
    elif seed is not None:
        file = _random(seed)
    elif (repo := _repo(encoder, weights)) and not hub.find_repo(repo, model_dir):
        command = _download_command(encoder, weights)
        file = NotHere(weights, command, model_dir, partial(hub.offer_repo, repo))
    else:
        file = load_tower(encoder, weights, model_dir)[1]
    return [(weights, file)] + [
        (name, published.find(known, model_dir) if known else load_head(name, encoder, embed_dim, None)[1])
        for name, known in others
    ]


def _needed(encoder: str, weights: str, heads: Sequence[str]) -> list[tuple[str, PublishedWeights | None]]:
    """The tower's weights and then each head, without the name put before it; None for unpublished ones."""
    spec_of(encoder)
    plain = [named["head"] if (named := _NAMED_HEAD.fullmatch(head)) else head for head in heads]
    return [
        (weights, _published_tower(encoder, weights)),
        *((head, _published_head(encoder, head)) for head in plain),
    ]


def _published_tower(encoder: str, weights: str) -> PublishedWeights | None:
    """The weights `openai`; None for any others. Raises ValueError for an encoder OpenAI didn't train."""
    if weights != "openai":
        return None
    if published.openai_model(encoder) not in published.OPENAI:
        raise ValueError(
            f"OpenAI published no weights for encoder {encoder!r}, only for {', '.join(published.OPENAI)}; "
            "give the path of a checkpoint with --weights"
        )
    files = published.OPENAI[published.openai_model(encoder)]
    return PublishedWeights(weights, files, _download_command(encoder, weights))


def _published_head(encoder: str, head: str) -> PublishedWeights | None:
    """The head `laion-v2` or `laion-v1`; None for any other. Raises ValueError for the wrong encoder."""
    if head not in HEADS[:2]:
        return None
    trained = {"ViT-L-14": published.LAION_V2} if head == "laion-v2" else published.LAION_V1
    if published.openai_model(encoder) not in trained:
        raise ValueError(
            f"head {head!r} was trained on embeddings of {' or '.join(trained)}, not of {encoder!r}; take "
            "another encoder, or the path of a head that was trained for this one"
        )
    command = f"dali-aesthetic download --encoder {encoder} --head {head}"
    return PublishedWeights(head, trained[published.openai_model(encoder)], command)


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
    """A file of the user's; the sha256 of several files is that of their hashes, a line each."""
    hashes = [published.hash_file(file) for file in checkpoint_files(path)]
    sha256 = hashlib.sha256("\n".join(hashes).encode()).hexdigest() if len(hashes) > 1 else hashes[0]
    return ResolvedFile(name=name, path=str(path), sha256=sha256, source=str(path))


def _shapes(spec: TowerSpec) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in VisionTower(spec).state_dict().items()}


def _check_fits(state: dict[str, Tensor], spec: TowerSpec, path: Path) -> None:
    """Raises ValueError naming the tensors that are not the encoder's."""
    wanted = _shapes(spec)
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


def _uniform(bound: float, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Values in [-bound, bound), float32 on the CPU.

    Uniform only: torch's normal samples differ in their last bits between CPUs (its vectorised code uses
    another logarithm), uniform ones are the same on every machine.
    """
    return torch.rand(*shape, generator=generator).mul_(2).sub_(1).mul_(bound)


def random_tower_state(spec: TowerSpec, seed: int = 0) -> dict[str, Tensor]:
    """Weights for `VisionTower.from_state`, at the scales that open_clip initialises its own with."""
    width = spec.width
    bounds = {"patch_embed.weight": (3 * spec.patch_size**2) ** -0.5}
    for name in ("class_embedding", "positional_embedding", "projection"):
        bounds[name] = math.sqrt(3) * width**-0.5  # of values with a standard deviation of width**-0.5
    for index in range(spec.layers):
        bounds[f"blocks.{index}.qkv.weight"] = math.sqrt(6 / (4 * width))
        for name in ("proj.weight", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
            bounds[f"blocks.{index}.{name}"] = (spec.mlp_width if "fc2" in name else width) ** -0.5
    shapes, generator = _shapes(spec), torch.Generator("cpu").manual_seed(seed)
    drawn = {name: _uniform(bound, shapes.pop(name), generator) for name, bound in bounds.items()}
    # What is left are the gains of norms, and biases.
    return drawn | {name: torch.full(shape, float(name.endswith("weight"))) for name, shape in shapes.items()}


def random_head_state(embed_dim: int, seed: int = 0) -> dict[str, Tensor]:
    """A linear head for unit embeddings whose scores spread around 5, as LAION's do."""
    # Another seed than the tower's, whose first numbers it would repeat.
    generator = torch.Generator("cpu").manual_seed(seed + 1_000_003)
    bound = math.sqrt(3) * (18 * embed_dim**-0.5)
    return {"weight": _uniform(bound, (1, embed_dim), generator), "bias": torch.full((1,), 5.0)}
