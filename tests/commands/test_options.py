"""Options are generated from the fields of `Config`, and their errors name flag, value and fix."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer
import yaml
from typer.core import TyperGroup
from typer.testing import CliRunner, Result

from dali_aesthetic.cli import app
from dali_aesthetic.commands.options import OPTIONS
from dali_aesthetic.config import Backend, Config, ConfigError
from dali_aesthetic.fields import PANELS, Option, options_of
from dali_aesthetic.score.backends.fits import BACKENDS

FIELDS = list(options_of(Config))
group = typer.main.get_command(app)
assert isinstance(group, TyperGroup)
COMMANDS = dict(group.commands)
WHERE = ("--input", "a.tar", "--output", "out")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def flags_of(command: str) -> set[str]:
    return {flag for parameter in COMMANDS[command].params for flag in parameter.opts if flag[:2] == "--"}


def wrong_values(option: Option) -> list[str]:
    """Values that don't fit the type or the limits of an option."""
    if get_origin(option.kind) is Literal:
        return ["nonsense", ""]
    if option.path == "launch.gpus":
        return ["many", "0", "-1", "1.5", ""]
    if option.kind in (int, float):
        limits = [limit for limit in option.field.metadata if hasattr(limit, "ge") or hasattr(limit, "gt")]
        below = ["-1"] if limits else []
        return ["abc", "", "1,5", "nan", *below, *(["0.5"] if option.kind is int else [])]
    return []


WRONG = [(option, value) for option in OPTIONS.values() for value in wrong_values(option)]


@pytest.mark.parametrize(("option", "value"), WRONG, ids=lambda item: getattr(item, "flag", item))
def test_a_wrong_value_of_a_flag_is_refused_with_flag_value_and_fix(option: Option, value: str) -> None:
    done = invoke("run", *WHERE, option.flag, value)
    text = " ".join(done.stderr.split())
    assert done.exit_code == 2
    assert text.startswith(f"error {option.flag} ")
    assert value in text
    assert any(fix in text for fix in ("give ", "did you mean"))
    assert not any(word in text for word in ("Input should be", "valid ", "unable to parse", "Traceback"))


@pytest.mark.parametrize(
    ("command", "flag", "value", "fix"),
    [
        ("plan --images 1B", "--gpus", "abc", "a whole number from 1 up"),
        ("plan --images 1B", "--gpus", "0", "a whole number from 1 up"),
        ("plan --images 1B", "--price", "nan", "a number from 0 up"),
        ("plan --images 1B", "--image-kb", "", "a number"),
        ("plan --images 1B", "--keep", "2", "a number from 0 to 1"),
        ("plan", "--images", "0", "a number from 1 up"),
        ("inspect --input a.tar", "--shards", "1.5", "a whole number from 1 up"),
        ("verify out", "--sample", "0", "a whole number from 1 up"),
        ("compact out --output packed", "--samples-per-shard", "many", "a whole number from 1 up"),
    ],
)
def test_a_wrong_number_of_an_option_outside_the_config_reads_the_same(
    command: str, flag: str, value: str, fix: str
) -> None:
    done = invoke(*command.split(), flag, value)
    assert done.exit_code == 2
    assert done.stderr.strip() == f"error {flag} {shlex.quote(value)}: give {fix}"


def test_the_backends_of_the_config_are_the_registered_ones() -> None:
    assert get_args(Backend) == ("auto", *BACKENDS)


def test_most_options_have_wrong_values() -> None:
    assert len({option.path for option, _ in WRONG}) >= 25


@pytest.mark.parametrize("option", FIELDS, ids=lambda option: option.path)
def test_a_wrong_value_of_a_field_is_refused_with_field_value_and_fix(option: Option) -> None:
    values: dict[str, Any] = {"input": "a", "output": "b"}
    *sections, name = option.path.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = {"a": object()}
    with pytest.raises(ConfigError) as caught:
        Config.build(values)
    assert str(caught.value).startswith(f"{option.path}: {{'a': ")
    assert "does not fit: give " in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decode": {"batchsize": 8}}, "decode.batchsize .* did you mean decode.batch_size?"),
        ({"batch_size": 8}, "batch_size .* did you mean decode.batch_size?"),
        ({"modle": {}}, "modle .* did you mean model?"),
        ({"threshold": {"keep_top": 0.5}}, "threshold.keep_top .* did you mean threshold.top?"),
        ({"guard": {"memory_budget": 1}}, "guard.memory_budget .* did you mean guard.memory_budget_gb?"),
        ({"launch": {"xyz": 1}}, "launch.xyz is no field: the section launch has engine, gpus, "),
        ({3: 4}, "3 is no field: the configuration has input, output"),
    ],
)
def test_a_misspelt_field_is_refused_with_the_nearest_match(values: dict[Any, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.build({"input": "a", "output": "b", **values})


def test_every_field_has_a_description_and_every_flag_is_of_one_field() -> None:
    assert [field.path for field in FIELDS if not field.description] == []
    assert len({option.flag for option in OPTIONS.values()}) == len(OPTIONS)
    assert {option.panel for option in OPTIONS.values()} == set(PANELS)


def test_score_takes_what_run_takes_but_the_cut() -> None:
    cut = {option.flag for path, option in OPTIONS.items() if path.startswith("threshold.")}
    assert cut
    assert flags_of("score") == flags_of("run") - cut - {"--output-format"}
    assert {option.flag for option in OPTIONS.values()} <= flags_of("run")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_as_a_switch_and_short_help(name: str) -> None:
    (json_option,) = [one for one in COMMANDS[name].params if "--json" in one.opts]
    assert json_option.is_flag  # type: ignore[attr-defined]
    assert invoke(name, "-h").exit_code == 0
    assert invoke(name, "-h").stdout == invoke(name, "--help").stdout


def test_the_help_is_in_panels_the_expert_last() -> None:
    text = invoke("run", "--help").stdout
    places = [text.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)
    assert text.index("--max-pixels") > places[-1] > text.index("--wandb")


@pytest.mark.parametrize("command", ["run", "score"])
def test_config_reads_what_print_config_prints(command: str, tmp_path: Path) -> None:
    given = [*WHERE, "--batch-size", "7", "--head", "a.pth", "--head", "ü=b", "--model-dir", tmp_path]
    printed = invoke(command, *given, "--print-config")
    assert printed.exit_code == 0
    values = yaml.safe_load(printed.stdout)
    assert (values["decode"]["batch_size"], values["model"]["heads"]) == (7, ["a.pth", "ü=b"])
    assert values["scores_only"] == (command == "score")
    (tmp_path / "run.yaml").write_text(printed.stdout)
    assert invoke(command, "--config", tmp_path / "run.yaml", "--print-config").stdout == printed.stdout


def test_config_reads_the_record_of_an_output_and_flags_win(tmp_path: Path) -> None:
    config = Config.build({"input": "a.tar", "output": "out", "threshold": {"preset": "high"}})
    record = tmp_path / "run.json"
    record.write_text(json.dumps({"identity": {}, "config": config.model_dump(mode="json")}))
    same = yaml.safe_load(invoke("run", "--config", record, "--print-config").stdout)
    assert Config.build(same) == config
    flags = ("--threshold", 0.4, "--output", "other")
    other = Config.build(yaml.safe_load(invoke("run", "--config", record, *flags, "--print-config").stdout))
    assert (other.threshold.min_raw, other.output, other.input) == (4.0, "other", config.input)


def test_a_config_takes_pathlib_paths(tmp_path: Path) -> None:
    config = Config.build(
        {"input": tmp_path / "a.tar", "output": tmp_path, "observe": {"log_json": tmp_path}}
    )
    assert (config.input, config.output) == ((str(tmp_path / "a.tar"),), str(tmp_path))
    assert config.observe.log_json == str(tmp_path)
    assert Config.build({"input": [tmp_path, "b"], "output": "o"}).input == (str(tmp_path), "b")
