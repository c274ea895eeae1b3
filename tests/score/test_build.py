"""A model is read once for all that need it, and errors that show without reading it come first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dali_aesthetic.score import build, weights
from dali_aesthetic.score.build import ModelReader
from dali_aesthetic.score.published import WeightsUnavailable


def reader(tiny: str, weights: str = "random:1", head: str = "random:1") -> ModelReader:
    return ModelReader(encoder=tiny, weights=weights, heads=[head], model_dir=None)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The weights of each tower that was read, in order."""
    seen: list[str] = []
    load = build.load_tower

    def counted(encoder: str, weights: str, model_dir: Path | None) -> object:
        seen.append(weights)
        return load(encoder, weights, model_dir)

    monkeypatch.setattr(build, "load_tower", counted)
    return seen


def test_a_model_is_read_once_until_it_is_taken(tiny: str, loads: list[str]) -> None:
    shared = reader(tiny)
    first = shared.read()
    assert shared.read() is first
    assert shared.take() is first
    assert loads == ["random:1"]
    assert shared.take() is not first, "its new owner may have moved it to a device"
    assert loads == ["random:1"] * 2


def test_a_copy_may_be_changed(tiny: str) -> None:
    model = reader(tiny).read()
    before = {name: tensor.clone() for name, tensor in model.tower.state_dict().items()}
    tower, heads = model.copy_to(torch.device("cpu"))
    images_NCHW = torch.rand(2, 3, model.tower.spec.image_size, model.tower.spec.image_size)
    expected_ND = model.tower(images_NCHW)
    assert (tower(images_NCHW) == expected_ND).all()
    assert (heads(expected_ND) == model.heads(expected_ND)).all()
    tower.half()
    heads.w_AD += 1
    after = model.tower.state_dict()
    assert all((after[name] == tensor).all() for name, tensor in before.items())
    assert (model.heads.w_AD + 1 == heads.w_AD).all()


@pytest.mark.parametrize(
    ("weights", "head", "says"),
    [
        ("nowhere.pt", "random:1", "no such file"),
        ("random:1", "nowhere.pth", "no such file"),
        ("random:x", "random:1", "seed"),
        ("random:1", "laion-v1", "was trained on"),
    ],
)
def test_wrong_names_are_found_before_a_tower_is_read(
    tiny: str, loads: list[str], weights: str, head: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        reader(tiny, weights, head).check()
    with pytest.raises(ValueError, match=says):
        reader(tiny, weights, head).read()
    assert not loads


def test_check_does_not_open_a_local_file(tmp_path: Path, tiny: str) -> None:
    (tmp_path / "tower.pt").write_bytes(b"no checkpoint")
    damaged = reader(tiny, str(tmp_path / "tower.pt"))
    damaged.check()
    with pytest.raises(ValueError, match="no checkpoint"):
        damaged.take()


def test_fetching_looks_for_published_weights_without_reading_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dali_aesthetic.score.published.hub.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("dali_aesthetic.score.published._places", lambda file, model_dir: iter(()))
    with pytest.raises(WeightsUnavailable, match="ViT-B-32"):
        weights.fetch_tower("ViT-B-32", "openai", tmp_path)
    monkeypatch.setattr("dali_aesthetic.score.published._places", lambda file, model_dir: iter([tmp_path]))
    weights.fetch_tower("ViT-B-32", "openai", tmp_path)
