"""Each checkpoint format, written here, gives the embeddings of the model it was saved from."""

from __future__ import annotations

import argparse
import copy
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from dali_aesthetic.score.checkpoints import read_clip, read_tensors
from dali_aesthetic.score.clip import VisionTower, normalize
from dali_aesthetic.score.published import OPENAI_SHA256
from dali_aesthetic.score.spec import TowerSpec
from dali_aesthetic.score.weights import load_tower, present
from tests.shards.tar_factory import pack


@pytest.fixture(scope="module")
def images_NCHW(pixels: Tensor, tiny_spec: TowerSpec) -> Tensor:
    return normalize(pixels[:4], tiny_spec)


@pytest.fixture(scope="module")
def open_clip_model(tiny: str) -> nn.Module:
    torch.manual_seed(5)
    return open_clip.create_model(tiny, pretrained=None).eval()


def _save_plain(state: dict[str, Tensor], path: Path) -> None:
    torch.save(state, path)


def _save_wrapped(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)


def _save_as_open_clips_trainer(state: dict[str, Tensor], path: Path) -> None:
    """Its cosine schedule leaves numpy's floats in the optimizer's groups."""
    groups = [{"lr": np.float64(1e-3), "step": np.int64(7), "params": [0]}]
    wrapped = {f"module.{k}": v for k, v in state.items()}
    torch.save({"epoch": 1, "state_dict": wrapped, "optimizer": {"param_groups": groups}}, path)


def _save_compiled(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"model_state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}}, path)


def _save_lightning(state: dict[str, Tensor], path: Path) -> None:
    more = {"loss.weight": torch.zeros(2)}
    torch.save({"state_dict": {f"model.clip_model.{k}": v for k, v in state.items()} | more}, path)


def _save_model_entry(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"model": state, "epoch": 1}, path)


def _save_tower_alone(state: dict[str, Tensor], path: Path) -> None:
    torch.save({k[7:]: v for k, v in state.items() if k.startswith("visual.")}, path)


def _save_index(state: dict[str, Tensor], path: Path) -> None:
    """As transformers writes a model of several files."""
    parts = [list(state)[::2], list(state)[1::2]]
    for number, names in enumerate(parts):
        _save_safetensors({name: state[name] for name in names}, path.with_name(f"{number}.safetensors"))
    files = {name: f"{number}.safetensors" for number, names in enumerate(parts) for name in names}
    path.write_text(json.dumps({"metadata": {}, "weight_map": files}))


def _save_legacy(state: dict[str, Tensor], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def _save_safetensors(state: dict[str, Tensor], path: Path) -> None:
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)


Save = Callable[[dict[str, Tensor], Path], None]


@pytest.mark.parametrize(
    "save",
    [
        *(_save_plain, _save_wrapped, _save_legacy, _save_safetensors, _save_as_open_clips_trainer),
        *(_save_compiled, _save_lightning, _save_model_entry, _save_tower_alone, _save_index),
    ],
)
def test_open_clip_state_dicts(
    tiny: str, open_clip_model: nn.Module, images_NCHW: Tensor, tmp_path: Path, save: Save
) -> None:
    path = tmp_path / "weights.bin"  # the format is not told by the name
    save(open_clip_model.state_dict(), path)
    tower, file = load_tower(tiny, str(path), None)
    with torch.inference_mode():
        expected = open_clip_model.encode_image(images_NCHW)
        torch.testing.assert_close(tower(images_NCHW), expected, atol=1e-5, rtol=0)
    assert (file.path, len(file.sha256)) == (str(path), 64)
    assert present(tiny, str(path), ["random"], None)[0] == (str(path), file)


def _hf_config(spec: TowerSpec, act: str) -> dict[str, object]:
    return {
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "projection_dim": spec.embed_dim,
        "hidden_act": act,
    }


def _features(output: object) -> Tensor:
    """Of transformers 4 (a tensor) or 5 (an output that holds it)."""
    return output if isinstance(output, Tensor) else output.pooler_output


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_hugging_face_clip_model(
    tiny: str, tiny_spec: TowerSpec, images_NCHW: Tensor, tmp_path: Path, act: str
) -> None:
    torch.manual_seed(6)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "projection_dim": 32}
    config = CLIPConfig(text_config=text, vision_config=_hf_config(tiny_spec, act), projection_dim=32)
    model = CLIPModel(config).eval()
    _spread(model)
    model.save_pretrained(tmp_path)
    for folder, more in (("sharded", {"max_shard_size": "100KB"}), ("half", {"variant": "fp16"})):
        model.save_pretrained(tmp_path / folder, **more)
    assert (tmp_path / "sharded/model.safetensors.index.json").is_file()
    # The folder's configuration says which GELU, whatever the encoder's name says.
    for path in (tmp_path, *(tmp_path / name for name in ("model.safetensors", "sharded", "half"))):
        for encoder in (tiny, f"{tiny}-quickgelu"):
            tower, _ = load_tower(encoder, str(path), None)
            with torch.inference_mode():
                expected = _features(model.get_image_features(images_NCHW))
                torch.testing.assert_close(tower(images_NCHW), expected, atol=1e-5, rtol=1e-5)


def test_hugging_face_vision_model(
    tiny: str, tiny_spec: TowerSpec, images_NCHW: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**_hf_config(tiny_spec, "quick_gelu"))).eval()
    _spread(model)
    model.save_pretrained(tmp_path)
    tower, _ = load_tower(tiny, str(tmp_path / "model.safetensors"), None)
    with torch.inference_mode():
        expected = model(images_NCHW).image_embeds
        torch.testing.assert_close(tower(images_NCHW), expected, atol=1e-5, rtol=1e-5)


def _spread(model: nn.Module) -> None:
    """Makes all parameters nonzero: Hugging Face's initial biases are zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def _openai_archive(tiny: str, path: Path) -> nn.Module:
    """Saves a traced half-precision CLIP as OpenAI published theirs; returns the model."""
    torch.manual_seed(8)
    model = open_clip.create_model(f"{tiny}-quickgelu", pretrained=None).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    inputs = {"encode_image": torch.zeros(1, 3, 32, 32)}
    traced = torch.jit.trace_module(model, inputs, check_trace=False)
    reference = copy.deepcopy(model)
    traced.half().save(str(path))  # also halves the parameters of the model that was traced
    return reference


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_openai_archive(tiny: str, images_NCHW: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "archive.pt"
    model = _openai_archive(tiny, path)
    # OpenAI's weights are QuickGELU's even under the name without the suffix.
    tower, _ = load_tower(tiny, str(path), None)
    assert tower.spec.quick_gelu
    with torch.inference_mode():
        torch.testing.assert_close(tower(images_NCHW), model.encode_image(images_NCHW), atol=1e-5, rtol=0)


def test_openai_weights_are_known_by_their_hash(
    tiny: str,
    open_clip_model: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "weights.safetensors"
    _save_safetensors(open_clip_model.state_dict(), path)
    tower, file = load_tower(tiny, str(path), None)
    assert not tower.spec.quick_gelu
    assert "doesn't say which GELU it has: GELU, by the name tiny-vit; else tiny-vit-quickgelu" in caplog.text
    caplog.clear()
    monkeypatch.setattr("dali_aesthetic.score.published.OPENAI_SHA256", OPENAI_SHA256 | {file.sha256})
    assert load_tower(tiny, str(path), None)[0].spec.quick_gelu
    assert caplog.text == ""


def test_the_configuration_in_open_clips_folder_decides_the_gelu(
    tiny: str, open_clip_model: nn.Module, tmp_path: Path
) -> None:
    _save_safetensors(open_clip_model.state_dict(), tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": {"embed_dim": 32, "quick_gelu": True}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert load_tower(tiny, str(tmp_path), None)[0].spec.quick_gelu


@pytest.mark.parametrize("beside", ["open_clip_config.json", "preprocessor_config.json"])
def test_pixels_are_normalised_as_the_folders_configuration_says(
    tiny: str, open_clip_model: nn.Module, pixels: Tensor, tmp_path: Path, beside: str
) -> None:
    """LAION's ViT-L-14 on LAION-2B, for one, was not trained with OpenAI's mean and std."""
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.6, 0.7]
    model_cfg = open_clip.get_model_config(tiny)
    ours = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": mean, "std": std}}
    theirs = {"image_mean": mean, "image_std": std}
    (tmp_path / beside).write_text(json.dumps(ours if beside.startswith("open_clip") else theirs))
    _save_safetensors(open_clip_model.state_dict(), tmp_path / "open_clip_model.safetensors")
    tower, _ = load_tower(tiny, str(tmp_path), None)
    if beside.startswith("open_clip"):
        reference = open_clip.create_model(f"local-dir:{tmp_path}").visual
        mean, std = reference.image_mean, reference.image_std
    normalised = (pixels.float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    with torch.inference_mode():
        expected = open_clip_model.encode_image(normalised.permute(0, 3, 1, 2))
        found = tower(normalize(pixels, tower.spec))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("beside", "config", "problem"),
    [
        ("open_clip_config.json", {"preprocess_cfg": {"resize_mode": "squash"}}, "resize_mode squash"),
        (
            "open_clip_config.json",
            {"preprocess_cfg": {"interpolation": "bilinear"}},
            "interpolation bilinear",
        ),
        ("preprocessor_config.json", {"resample": 2}, "resample 2"),
        ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop False"),
        ("preprocessor_config.json", {"size": {"height": 8, "width": 8}}, "size height and width"),
    ],
)
def test_a_folder_that_prepares_its_pixels_otherwise_is_refused(
    tiny: str,
    open_clip_model: nn.Module,
    tmp_path: Path,
    beside: str,
    config: dict[str, object],
    problem: str,
) -> None:
    (tmp_path / beside).write_text(json.dumps({"model_cfg": open_clip.get_model_config(tiny), **config}))
    _save_safetensors(open_clip_model.state_dict(), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=problem):
        load_tower(tiny, str(tmp_path), None)


SUPPORTED = {"resize_mode": "shortest", "interpolation": "bicubic"}


@pytest.mark.parametrize(
    ("beside", "config"),
    [
        (
            "open_clip_config.json",
            {"preprocess_cfg": SUPPORTED},
        ),
        ("preprocessor_config.json", {"resample": 3, "do_center_crop": True, "size": {"shortest_edge": 8}}),
        ("preprocessor_config.json", {"do_resize": True, "size": 8}),
    ],
)
def test_a_folder_that_prepares_its_pixels_as_clip_does_is_taken(
    tiny: str, open_clip_model: nn.Module, tmp_path: Path, beside: str, config: dict[str, object]
) -> None:
    (tmp_path / beside).write_text(json.dumps({"model_cfg": open_clip.get_model_config(tiny), **config}))
    _save_safetensors(open_clip_model.state_dict(), tmp_path / "open_clip_model.safetensors")
    load_tower(tiny, str(tmp_path), None)


def test_missing_extra_and_misshapen_tensors_are_named(
    tiny: str, open_clip_model: nn.Module, tmp_path: Path
) -> None:
    state = open_clip_model.state_dict()
    del state["visual.transformer.resblocks.1.attn.in_proj_bias"]
    state["visual.head.weight"] = torch.zeros(3)
    state["visual.proj"] = torch.zeros(128, 16)
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    with pytest.raises(ValueError, match="tiny-vit") as error:
        load_tower(tiny, str(path), None)
    for part in ("lacks blocks.1.qkv.bias", "visual.head.weight", "projection [128, 16], not [128, 32]"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"no checkpoint \(it begins with b''\): give a checkpoint"),
        (b"not a checkpoint at all", "no checkpoint .it begins with b'not a che'"),
        (b"PK\3\4 cut", "no checkpoint of plain tensors"),
        (pack([("a.jpg", b"x")]), "weights.pt is a tar: give a checkpoint"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{damaged", "damaged safetensors"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_clip(path)
    with pytest.raises(ValueError, match=r"^((?!weights_only=True).)*$"):  # torch's advice
        read_clip(path)
    with pytest.raises(ValueError, match="no such file or folder"):
        read_clip(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"folder without model\.safetensors"):
        read_clip(tmp_path)
    torch.save({"weight": torch.zeros(1, 4)}, path)
    with pytest.raises(ValueError, match="no CLIP checkpoint"):
        read_clip(path)


def test_the_hash_of_several_files_changes_with_each(
    tiny: str, open_clip_model: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors.index.json"
    hashes = []
    for name in ("", "visual.proj", "visual.conv1.weight"):
        state = open_clip_model.state_dict()
        _save_index({k: v + 1 if k == name else v for k, v in state.items()}, path)
        hashes.append(load_tower(tiny, str(tmp_path), None)[1].sha256)
    assert len(set(hashes)) == 3
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names 1\.safetensors: no such file beside it"):
        load_tower(tiny, str(tmp_path), None)
    path.write_text("{}")
    with pytest.raises(ValueError, match="has no weight_map"):
        load_tower(tiny, str(tmp_path), None)


def test_several_towers_and_a_checkpoint_without_tensors_are_refused(
    open_clip_model: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    state = open_clip_model.state_dict()
    torch.save(state | {f"model.{k}": v for k, v in state.items()}, path)
    with pytest.raises(ValueError, match=r"several image towers, below '', 'model\.'"):
        read_clip(path)
    torch.save({"epoch": 1, "optimizer": {}}, path)
    with pytest.raises(ValueError, match="holds no tensors: its entries are epoch, optimizer"):
        read_clip(path)


def test_the_message_names_the_global_and_not_torchs_advice(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(ValueError, match=r"asks for argparse\.Namespace\); where you trust it") as error:
        read_clip(path)
    assert "\x1b" not in str(error.value)
    assert "two options" not in str(error.value)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole.pt", tmp_path / "damaged.pt"
    with zipfile.ZipFile(whole, "w") as out:
        out.writestr("x/code/__torch__.py", "")
        out.writestr("x/data.pkl", pickle.dumps([1, 2], protocol=2))
    content = whole.read_bytes()
    for offset in range(len(content)):
        damaged.write_bytes(content[:offset] + bytes([content[offset] ^ 0x55]) + content[offset + 1 :])
        with pytest.raises(ValueError, match=r"damaged\.pt"):
            read_clip(damaged)
    flipped = content.replace(b"K\x01K\x02", b"K\x01K\x03")
    damaged.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"damaged\.pt is a damaged archive .*: download it again"):
        read_clip(damaged)


class _Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self._target = str(target)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self._target,)


def test_no_pickle_is_executed(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    for legacy in (False, True):
        path = tmp_path / f"weights-{legacy}.pt"
        torch.save({"a": _Malicious(target)}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ValueError, match="nothing else is loaded from a pickle"):
            read_tensors(path)
    archive = tmp_path / "archive.pt"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("x/code/__torch__.py", "")
        out.writestr("x/data.pkl", pickle.dumps(_Malicious(target), protocol=2))
    with pytest.raises(ValueError, match=r"not TorchScript's: it names posix\.mkdir"):
        read_clip(archive)
    assert not target.exists()


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "archive.pt"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("x/code/__torch__.py", "")
        out.writestr("x/data.pkl", pickle.dumps([1, 2], protocol=2))
    with pytest.raises(ValueError, match="holds no module"):
        read_clip(archive)


def test_a_tower_keeps_its_frozen_names(tiny_spec: TowerSpec) -> None:
    with torch.device("meta"):
        names = set(VisionTower(tiny_spec).state_dict())
    block = {
        f"blocks.2.{part}.{kind}"
        for part in ("ln_1", "qkv", "proj", "ln_2", "fc1", "fc2")
        for kind in ("weight", "bias")
    }
    assert block < names
    assert {"patch_embed.weight", "class_embedding", "positional_embedding", "projection"} < names
