"""Specs of open_clip's encoders by name, and the encoders that are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest

from dali_aesthetic.score.spec import meant, model_config, spec_of

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


def test_specs_of_open_clip_names() -> None:
    large = spec_of("ViT-L-14")
    assert (large.image_size, large.patch_size, large.width, large.layers) == (224, 14, 1024, 24)
    assert (large.heads, large.mlp_width, large.embed_dim, large.tokens) == (16, 4096, 768, 257)
    assert not large.quick_gelu
    assert spec_of("ViT-L-14-quickgelu").quick_gelu
    assert spec_of("ViT-H-14").heads == 16
    assert spec_of("ViT-bigG-14").mlp_width == 8192


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("RN50", "ResNet"),
        ("coca_ViT-L-14", "attentional_pool"),
        ("convnext_base", "timm's convnext_base"),
        ("ViT-B-16-SigLIP", "timm's vit_base_patch16_siglip_224"),
        ("ViT-L-14-CLIPA", "pool_type='avg'"),
        ("ViT-M-16-alt", "ls_init_value"),
        ("ViT-SO400M-14-SigLIP", "timm's"),
        ("ViT-L", "no such model"),
        ("ViT-Q-99", "no such model"),
        ("hf-hub:timm/x", "no such model"),
        ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "no such model"),
    ],
)
def test_other_encoders_are_refused(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)encoder '{name}'.*{why}.*ViT-L-14"):
        spec_of(name)


@pytest.mark.parametrize(
    ("option", "given", "expected"),
    [
        ("head", "laion_v2", " (did you mean laion-v2?)"),
        ("head", "laion2b_s34b_b79k", " (laion2b_s34b_b79k is a name for --weights)"),
        ("head", "ViT-B-32", " (ViT-B-32 is a name for --encoder)"),
        ("head", "ramdom", " (did you mean random?)"),
        ("head", "mine.pth", ""),
        ("weights", "laion_v2", " (laion-v2 is a name for --head)"),
        ("weights", "open-ai", " (did you mean openai?)"),
        ("weights", "laion2b_s32b_b82", " (did you mean laion2b_s32b_b82k?)"),
        ("encoder", "vit-l/14", " (did you mean ViT-L-14?)"),
        ("encoder", "laion-v2", " (laion-v2 is a name for --head)"),
    ],
)
def test_a_wrong_name_gets_its_near_match_of_any_option(option: str, given: str, expected: str) -> None:
    assert meant(option, given, "ViT-L-14") == expected


def test_weights_of_another_encoder_are_told_as_such() -> None:
    told = meant("weights", "laion2b_s34b_b79k", "ViT-L-14")
    assert told.startswith(" (they are weights of ViT-B-32; ViT-L-14 has commonpool_xl_clip")
    assert "openai, random)" in told
