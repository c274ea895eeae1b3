"""A config is valid when it is built, or refused with the field, the value and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dali_aesthetic.config import Config, ConfigError, ModelConfig, merge
from dali_aesthetic.fields import in_fields
from dali_aesthetic.threshold import Threshold

OF_OTHERS = ("kube", "sky", "ray-cluster")
"""Files for a cluster's own tools."""
CONFIGS = sorted(
    path
    for path in (Path(__file__).parents[1] / "configs").glob("*.yaml")
    if not path.name.startswith(OF_OTHERS)
)
MINIMAL = {"input": "a.tar", "output": "out"}


def test_a_single_input_is_a_list_of_one() -> None:
    assert Config.build(MINIMAL).input == ("a.tar",)


def test_columns_are_split_at_commas() -> None:
    assert Config.build(MINIMAL | {"columns": "a, dc:x:int"}).columns == ("a", "dc:x:int")
    assert Config.build(MINIMAL, {"columns": ["a:bool", "b,c"]}).columns == ("a:bool", "b", "c")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output": "out"}, "input is missing: give input$"),
        ({"input": "", "output": "out"}, "input: no input given"),
        ({"input": "in", "output": ""}, "^output is empty: name a folder"),
        (MINIMAL | {"decode": {"batch_size": 0}}, r"decode.batch_size: 0 does not fit"),
        (
            MINIMAL | {"decode": {"batchsize": 8}},
            r"^decode.batchsize is no field of the configuration: did you mean decode.batch_size\?",
        ),
        (
            MINIMAL | {"decode": {"batch_size": True}},
            "decode.batch_size: True does not fit: give a whole number",
        ),
        (MINIMAL | {"launch": {"gpus": True}}, "launch.gpus: True does not fit: give a"),
        (MINIMAL | {"threshold": {"top": True}}, "threshold.top: True does not fit: give a number"),
        (MINIMAL | {"device": "gpu"}, "device: 'gpu' does not fit: give one of auto, cpu, cuda, cuda:N"),
        (MINIMAL | {"device": "cuda:1", "launch": {"gpus": 2}}, "^device cuda:1 and launch.gpus 2 are given"),
        (MINIMAL | {"device": "cuda:1", "launch": {"workers": 2}}, "^launch.workers 2 and device cuda:1 are"),
        (MINIMAL | {"model": {"heads": []}}, "model.heads: no head given"),
        (MINIMAL | {"model": {"heads": ["a", "a"]}}, "names a head twice"),
        (
            MINIMAL | {"threshold": {"unit": 5}},
            r"^threshold.unit 5 is outside 0..1: did you mean threshold.raw 5 \(the same as threshold.unit",
        ),
        (MINIMAL | {"gate": {"max_flips": float("inf")}}, r"gate.max_flips: inf does not fit"),
        (MINIMAL | {"threshold": 0.9}, r"^threshold: 0.9 does not fit: it is a section"),
        (
            MINIMAL | {"columns": "a:number"},
            r"^columns: .*give NAME or NAME:TYPE, .*string, int, float",
        ),
        (MINIMAL | {"columns": ["a", "A:int"]}, r"^columns: .*give each column once, not a, A:int"),
        (MINIMAL | {"columns": "a,,b"}, r"^columns: .*give NAME or NAME:TYPE, separated by commas"),
        (MINIMAL | {"columns": "a\udcff"}, r"^columns: .*give NAME or NAME:TYPE, separated by commas"),
        (MINIMAL | {"columns": [1]}, r"^columns.*1 does not fit: give text, or a list of texts"),
    ],
)
def test_errors_name_the_field_and_the_fix(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**values)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        Config.build(values)


def test_a_leading_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    inputs = ["~/{0..3}.tar", "@~/list.txt", "s3://~/in", "./~/in", "~in", "in/~/b", "@in"]
    config = Config.build({"input": inputs, "output": "~/kept", "model": {"model_dir": "~/models"}})
    assert config.input == ("/home/ada/{0..3}.tar", "@/home/ada/list.txt", *inputs[2:])
    assert config.output == "/home/ada/kept"
    assert config.model.model_dir == Path("/home/ada/models")
    assert Config.build({"input": "~/a", "output": "s3://b/~/c"}).output == "s3://b/~/c"


def test_configs_cannot_be_changed() -> None:
    config = Config.build(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.output = "elsewhere"  # type: ignore[misc]


def test_flags_win_over_the_file_section_by_section() -> None:
    base = {"output": "a", "model": {"encoder": "ViT-B-32", "weights": "openai"}}
    merged = merge(base, {"output": None, "model": {"encoder": "ViT-L-14", "weights": None}})
    assert merged == {"output": "a", "model": {"encoder": "ViT-L-14", "weights": "openai"}}


@pytest.mark.parametrize("wrong", [0.9, 0, "high", []])
def test_a_value_in_place_of_a_section_is_refused_despite_flags(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"^threshold: .* does not fit"):
        Config.build(merge(MINIMAL | {"threshold": wrong}, {"threshold": {"unit": None}}))
    Config.build(merge(MINIMAL | {"threshold": None}, {"threshold": {"unit": None}}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_example_configs_are_valid(path: Path) -> None:
    Config.build(yaml.safe_load(path.read_text()))


def test_example_configs_exist() -> None:
    assert CONFIGS


def test_the_command_line_gets_flags_where_python_gets_fields() -> None:
    given = {"threshold": {"unit": "5"}, "launch": {"workers": "2", "gpus": "1"}}
    with pytest.raises(ConfigError, match=r"^--threshold 5 is outside .* did you mean --raw-threshold 5 "):
        Config.build(MINIMAL, given)
    with pytest.raises(ConfigError, match=r"^threshold.unit 5 is outside .* did you mean threshold.raw 5 "):
        Config.build(MINIMAL | given)


def test_a_section_alone_raises_the_same_error() -> None:
    with pytest.raises(ConfigError, match=r"^precision: 'fp4' does not fit: give one of auto, fp32"):
        ModelConfig(precision="fp4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^encodr is no field .* did you mean encoder\?"):
        ModelConfig(encodr="x")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"^unit 5 is outside 0..1: did you mean raw 5 "):
        Threshold(unit=5)


def test_commands_in_an_error_keep_their_flags() -> None:
    text = "give --raw-threshold 5 or --no-such: dali-aesthetic filter --raw-threshold 5"
    expected = "give threshold.raw 5 or --no-such: dali-aesthetic filter --raw-threshold 5"
    assert in_fields(text, Config) == expected


def test_paths_are_taken_wherever_text_is_one(tmp_path: Path) -> None:
    model = ModelConfig(heads=tmp_path / "head.pth", model_dir=str(tmp_path), weights=tmp_path / "w.pt")
    config = Config(input=[tmp_path / "a", "b"], output=tmp_path / "out", model=model)
    assert (config.input, config.output) == ((str(tmp_path / "a"), "b"), str(tmp_path / "out"))
    assert Config(input=tmp_path, output="x").input == (str(tmp_path),)
    assert (model.heads, model.weights) == ((str(tmp_path / "head.pth"),), str(tmp_path / "w.pt"))
    assert model.model_dir == tmp_path
