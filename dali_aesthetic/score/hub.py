"""Repositories of the Hugging Face hub, `hf-hub:ORG/REPO[@REVISION]` or open_clip's tag for one.

They are not pinned: the commit and the sha256 of the file that was downloaded are recorded.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants

from dali_aesthetic.score.checkpoints import FOLDER_FILES
from dali_aesthetic.score.published import Offer, WeightsUnavailable, one_line, require_online

_PREFIX = "hf-hub:"
_CONFIGS = ("open_clip_config.json", "config.json", "preprocessor_config.json")
# open_clip's files first: beside them, timm's repositories keep the same tower under timm's own names.
_FILES = sorted(FOLDER_FILES, key=lambda name: not name.startswith("open_clip"))


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository of the hub, at a `revision` (branch, tag or commit) or, with "", at its main branch."""

    name: str
    revision: str = ""

    @property
    def folder(self) -> str:
        """Its folder in a model directory."""
        return f"{self.name}@{self.revision.replace('/', '-')}" if self.revision else self.name


def hub_repo(encoder: str, weights: str) -> HubRepo | None:
    """The repository that `hf-hub:ORG/REPO[@REVISION]` or a tag of open_clip's names; None for any other."""
    if weights.startswith(_PREFIX):
        name, _, revision = weights.removeprefix(_PREFIX).partition("@")
        return HubRepo(name.strip("/"), revision)
    name = _repo_of(registered(encoder, weights))
    return HubRepo(name) if name else None


def registered(encoder: str, weights: str) -> Mapping[str, Any]:
    """open_clip's entry for a tag or a repository: mean, std, GELU and more; empty where it has none."""
    import open_clip  # slow: see weights.py

    if not weights.startswith(_PREFIX):
        return open_clip.get_pretrained_cfg(encoder, weights) or {}
    repo = hub_repo(encoder, weights)
    every = (open_clip.get_pretrained_cfg(*one) for one in open_clip.list_pretrained())
    return next((entry for entry in every if repo and _repo_of(entry) == repo.name), {})


def _repo_of(entry: Mapping[str, Any]) -> str:
    return "/".join(str(entry.get("hf_hub", "")).split("/")[:2])


def find_repo(repo: HubRepo, model_dir: Path | None) -> Path | None:
    """The weight file of the repository in `model_dir` or the hub's cache; None without one."""
    for name in _FILES:
        if model_dir and (model_dir / repo.folder / name).is_file():
            return model_dir / repo.folder / name
        with contextlib.suppress(Exception):  # not in the cache, or no repository's name: the download says
            found = Path(_snapshot(repo, name, local_files_only=True))
            if (found / name).is_file():
                return found / name
    return None


def _snapshot(repo: HubRepo, name: str, **options: Any) -> str:
    """The folder with the files that `_patterns` names.

    A look into the cache needs the same patterns: for others the hub's client calls it incomplete.
    """
    revision, patterns = repo.revision or None, _patterns(name)
    return str(
        huggingface_hub.snapshot_download(repo.name, revision=revision, allow_patterns=patterns, **options)
    )


def _patterns(name: str) -> list[str]:
    """The weight file `name`, the files that it is the index of, and the configuration."""
    stem, suffix, *index = name.split(".", 2)
    return [name, *_CONFIGS, *([f"{stem}-*.{suffix}"] if index and index[0].startswith("index") else [])]


def _choose(names: Collection[str]) -> str:
    name = next((name for name in _FILES if name in names), None)
    if name is None:
        raise ValueError(f"it holds none of {', '.join(_FILES)}")
    return name


def offer_repo(repo: HubRepo) -> Offer:
    """The address and the bytes of what `download_repo` would download. Raises OSError."""
    try:
        require_online(constants.ENDPOINT)
        info = huggingface_hub.model_info(repo.name, revision=repo.revision or None, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        patterns = _patterns(_choose(sizes))
    except Exception as error:  # as in `download_repo`
        raise OSError(f"https://huggingface.co/{repo.folder}: {one_line(error)}") from error
    needed = (size for name, size in sizes.items() if any(fnmatch.fnmatch(name, one) for one in patterns))
    return f"https://huggingface.co/{repo.folder}", sum(needed)


def download_repo(repo: HubRepo, weights: str, command: str, target: Path | None) -> Path:
    """The repository's weight file with the configuration beside it, in the folder `target` or the cache.

    Raises WeightsUnavailable, which names `command`, for an unreachable hub or a repository without weights.
    """
    try:
        require_online(constants.ENDPOINT)
        there = huggingface_hub.list_repo_files(repo.name, revision=repo.revision or None)
        name = _choose(there)
        folder = _snapshot(repo, name, local_dir=target / repo.folder if target else None)
    except Exception as error:  # the hub's client raises its own, httpx's or requests', by version
        raise WeightsUnavailable(
            f"weights {weights!r} are not on this machine and could not be downloaded from "
            f"https://huggingface.co/{repo.folder}: {one_line(error)}\n"
            f"Where there is a network, run {command} --model-dir DIR, bring the folder here and pass "
            "--model-dir DIR"
        ) from error
    return Path(folder) / name


def repo_source(repo: HubRepo, file: Path) -> str:
    """The repository's address with the commit, as the hub's client noted it, else the revision asked for."""
    commit = file.parent.name if file.parent.parent.name == "snapshots" else ""
    with contextlib.suppress(OSError):
        note = file.parent / ".cache/huggingface/download" / f"{file.name}.metadata"
        commit = commit or note.read_text().partition("\n")[0].strip()
    return f"https://huggingface.co/{repo.name}/tree/{commit or repo.revision}".removesuffix("/tree/")
