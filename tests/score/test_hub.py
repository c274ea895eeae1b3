"""Repositories of the hub as weights. Only the hub's listing and download are stood in for."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import safetensors.torch
import torch

from dali_aesthetic.score import hub, published
from dali_aesthetic.score.published import WeightsUnavailable, hash_file
from dali_aesthetic.score.weights import download, load_tower, present

REPO, COMMIT = "someone/tiny", "c" * 40
NAME = f"hf-hub:{REPO}"


@pytest.fixture
def repo(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's files, as open_clip pushes them, with timm's tower beside them."""
    folder, cache = tmp_path / "repo", tmp_path / "hub" / "models--someone--tiny"
    folder.mkdir()
    model = open_clip.create_model(tiny, pretrained=None)
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    safetensors.torch.save_file({"blocks.0.x": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(published.hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "require_online", lambda endpoint: None)

    def snapshot(
        repo: str,
        *,
        allow_patterns: list[str] | None = None,
        local_dir: Path | None = None,
        local_files_only: bool = False,
    ) -> str:
        if local_files_only:
            return real(repo, local_files_only=True, cache_dir=tmp_path / "hub")
        target = local_dir or cache / "snapshots" / COMMIT
        target.mkdir(parents=True)
        for path in folder.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns or ["*"]):
                shutil.copy(path, target)
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        (cache / "refs/main").write_text(COMMIT)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(
        huggingface_hub, "list_repo_files", lambda repo: [path.name for path in folder.iterdir()]
    )
    return folder


def test_a_repository_is_downloaded_once_and_its_commit_and_hash_recorded(
    tiny: str, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((_, missing),) = present(tiny, NAME, [], None)
    assert f"dali-aesthetic download --encoder {tiny} --weights {NAME}" in str(missing)
    tower, file = load_tower(tiny, NAME, None)
    assert tower.spec.quick_gelu, "by the configuration beside the weights"
    assert file.name == NAME
    assert file.sha256 == hash_file(repo / "open_clip_model.safetensors")
    assert file.source == f"https://huggingface.co/{REPO}/tree/{COMMIT}"
    assert not Path(file.path).with_name("model.safetensors").exists()
    monkeypatch.setattr(huggingface_hub, "list_repo_files", None)
    assert load_tower(tiny, NAME, None)[1] == file
    assert present(tiny, NAME, [], None) == [(NAME, file)]


def test_a_download_to_the_model_dir_is_found_there(tiny: str, repo: Path, tmp_path: Path) -> None:
    (file,) = download(tiny, NAME, [], tmp_path / "models")
    assert file.path == str(tmp_path / "models" / REPO / "open_clip_model.safetensors")
    assert load_tower(tiny, NAME, tmp_path / "models")[1] == file


def test_a_tag_of_open_clip_names_its_repository(tiny: str) -> None:
    assert hub.hub_repo("ViT-B-32", "laion2b_s34b_b79k") == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert hub.hub_repo("ViT-L-14", "dfn2b") == "apple/DFN2B-CLIP-ViT-L-14"
    assert hub.hub_repo(tiny, "laion2b_s34b_b79k") == ""
    with pytest.raises(ValueError, match=r"did you mean laion2b_s34b_b79k"):
        load_tower("ViT-B-32", "laion2b_s34b_b79", None)


@pytest.mark.parametrize("problem", ["no weights", "unreachable"])
def test_a_repository_that_gives_no_weights_is_told_with_the_command(
    tiny: str, repo: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    def unreachable(endpoint: str) -> None:
        raise OSError("unreachable")

    for path in repo.glob("*.safetensors"):
        path.unlink()
    if problem == "unreachable":
        monkeypatch.setattr(hub, "require_online", unreachable)
    expected = "it holds none of" if problem == "no weights" else "unreachable"
    with pytest.raises(WeightsUnavailable, match=rf"{REPO}: {expected}") as error:
        load_tower(tiny, NAME, None)
    assert f"dali-aesthetic download --encoder {tiny} --weights {NAME} --model-dir DIR" in str(error.value)
