"""The demo set is complete and reproducible; random weights are used under a banner only."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from dali_aesthetic import demo
from dali_aesthetic.cli import app
from dali_aesthetic.config import ConfigError
from dali_aesthetic.demo import make_demo_set, run_demo
from tests.conftest import read_members, snapshot


@pytest.fixture(scope="module")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "input"
    assert make_demo_set(folder).endswith("demo-{00000..00002}.tar")
    return folder


def test_the_set_has_about_200_samples_of_image_txt_and_json(demo_set: Path) -> None:
    members = [name for tar in sorted(demo_set.iterdir()) for name, _ in read_members(tar)]
    suffixes = [name.split(".")[1] for name in members]
    assert 150 <= suffixes.count("txt") == suffixes.count("json") <= 250
    assert suffixes.count("jpg") + suffixes.count("webp") == suffixes.count("txt")


def test_the_images_of_the_set_decode(demo_set: Path) -> None:
    with tarfile.open(demo_set / "demo-00000.tar") as tar:
        for member in tar.getmembers()[:30]:
            if member.name.endswith(("jpg", "webp")):
                content = tar.extractfile(member)
                assert content is not None
                Image.open(io.BytesIO(content.read())).load()


def test_the_set_is_reproducible(demo_set: Path, tmp_path: Path) -> None:
    make_demo_set(tmp_path)
    assert snapshot(tmp_path) == snapshot(demo_set)


def test_without_weights_a_banner_says_that_scores_mean_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On two of the photos, to save time."""
    monkeypatch.setattr(demo, "PHOTOS", demo.PHOTOS[:2])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "demo"), "--device", "cpu"])
    assert done.exit_code == 0
    text = done.stderr
    assert "RANDOM WEIGHTS: THE SCORES BELOW MEAN NOTHING" in text
    assert "3 committed, 0 failed" in text
    assert (tmp_path / "demo" / "output-random-weights" / "stats" / "demo-00002.json").exists()
    assert not (tmp_path / "demo" / "output").exists()


def test_missing_photos_are_refused_with_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ConfigError, match=r"scikit-image \(.*pip install '\.\[demo\]' in the clone"):
        make_demo_set(tmp_path / "input")


def test_a_leading_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(demo, "make_demo_set", lambda folder: asked.append(folder) or "")
    with pytest.raises(ConfigError, match="no input"):
        run_demo(Path("~/demo"), None, "cpu", Console())
    assert asked == [tmp_path / "demo" / "input"]
