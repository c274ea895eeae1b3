"""Repositories of the Hugging Face hub as weights: `hf-hub:ORG/REPO`, or open_clip's tag for one.

They are not pinned: the commit and the sha256 of what was found are recorded.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import huggingface_hub
import open_clip
from huggingface_hub import constants

from dali_aesthetic.score.checkpoints import FOLDER_FILES
from dali_aesthetic.score.published import WeightsUnavailable, require_online

_PREFIX = "hf-hub:"
_CONFIGS = ("open_clip_config.json", "config.json", "preprocessor_config.json")
# open_clip's files first: beside them, timm's repositories keep the same tower under timm's own names.
_FILES = sorted(FOLDER_FILES, key=lambda name: not name.startswith("open_clip"))


def hub_repo(encoder: str, weights: str) -> str:
    """The repository that `hf-hub:ORG/REPO` or a tag of open_clip's names; "" for any other weights."""
    if weights.startswith(_PREFIX):
        return weights.removeprefix(_PREFIX).strip("/")
    config = open_clip.get_pretrained_cfg(encoder, weights) or {}
    return "/".join(str(config.get("hf_hub", "")).split("/")[:2])


def find_repo(repo: str, model_dir: Path | None) -> Path | None:
    """The weight file of the repository in `model_dir/ORG/REPO` or the hub's cache; None without one."""
    folders = [model_dir / repo] if model_dir else []
    with contextlib.suppress(Exception):  # not in the cache, or no repository's name: the download says which
        folders.append(Path(huggingface_hub.snapshot_download(repo, local_files_only=True)))
    return next((folder / name for folder in folders for name in _FILES if (folder / name).is_file()), None)


def download_repo(repo: str, weights: str, command: str, target: Path | None) -> Path:
    """The repository's weight file with the configuration beside it, in `target/ORG/REPO` or the cache.

    Raises WeightsUnavailable, which names `command`, for an unreachable hub or a repository without weights.
    """
    try:
        require_online(constants.ENDPOINT)
        there = huggingface_hub.list_repo_files(repo)
        name = next((name for name in _FILES if name in there), None)
        if name is None:
            raise ValueError(f"it holds none of {', '.join(_FILES)}")
        stem, suffix, *index = name.split(".", 2)
        parts = [f"{stem}-*.{suffix}"] if index and index[0].startswith("index") else []
        folder = huggingface_hub.snapshot_download(
            repo, allow_patterns=[name, *_CONFIGS, *parts], local_dir=target / repo if target else None
        )
    except Exception as error:  # the hub's client raises its own, httpx's or requests', by version
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsUnavailable(
            f"weights {weights!r} are not on this machine and could not be downloaded from "
            f"https://huggingface.co/{repo}: {reason}\n"
            f"Where there is a network, run {command} --model-dir DIR, bring the folder here and pass "
            "--model-dir DIR"
        ) from error
    return Path(folder) / name


def repo_source(repo: str, file: Path) -> str:
    """The repository's address, with the commit where the hub's cache tells it."""
    commit = f"/tree/{file.parent.name}" if file.parent.parent.name == "snapshots" else ""
    return f"https://huggingface.co/{repo}{commit}"
