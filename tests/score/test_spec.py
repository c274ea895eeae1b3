"""What an encoder's name stands for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest

from dali_aesthetic.score.spec import model_config, spec_of

ALL_CONFIGS = """
import json, sys
from dali_aesthetic.score.spec import model_config, spec_of
spec_of("ViT-L-14")
names = json.loads(sys.stdin.read())
configs = {name: model_config(name) for name in names}
heavy = sorted({"open_clip", "timm", "torchvision", "transformers"} & sys.modules.keys())
print(json.dumps([configs, heavy]))
"""


def test_configurations_are_open_clips_own_without_importing_it() -> None:
    # From its package: `list_models` has the small ones that other tests add.
    own = Path(open_clip.__file__).with_name("model_configs").glob("*.json")
    names = [*(file.stem for file in own), "no-such-model", "../model_configs/ViT-L-14", ""]
    done = subprocess.run(
        [sys.executable, "-c", ALL_CONFIGS],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        check=True,
    )
    configs, heavy = json.loads(done.stdout)
    assert heavy == []
    assert len(configs) > 100
    assert configs == {name: open_clip.get_model_config(name) for name in names}


def test_models_added_to_an_imported_open_clip_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    added = {**open_clip.get_model_config("ViT-B-32"), "embed_dim": 48}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "added-by-a-user", added)
    assert model_config("added-by-a-user") == added
    assert spec_of("added-by-a-user").embed_dim == 48


@pytest.mark.parametrize("name", ["RN50", "coca_ViT-L-14", "ViT-SO400M-14-SigLIP", "hf-hub:timm/x", "ViT-L"])
def test_other_towers_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"encoder '{name}'"):
        spec_of(name)
