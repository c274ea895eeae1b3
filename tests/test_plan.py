"""The cost estimate: its figures add up, and its rates were measured."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from dali_aesthetic.config import ConfigError
from dali_aesthetic.cost import Plan, known_rates, make_plan, read_count, web_mix_bound


def plan(**change: object) -> Plan:
    values = {"images": 5e9, "gpus": 64, "gpu": "h100", "price": 2.5, "image_kb": 100.0, "keep": 0.25}
    return make_plan(**(values | change))  # type: ignore[arg-type]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dali_aesthetic", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_figures_add_up() -> None:
    rate, found = known_rates()["h100"].images_per_second, plan()
    assert found.gpu_hours == pytest.approx(5e9 / rate / 3600)
    assert found.hours == pytest.approx(found.gpu_hours / 64)
    assert found.cost == pytest.approx(2.5 * found.gpu_hours)
    assert found.images_per_second == pytest.approx(64 * rate)
    assert found.read_gb_per_second * found.hours * 3600 / 1000 == pytest.approx(found.read_tb)
    assert found.write_gb_per_second * found.hours * 3600 / 1000 == pytest.approx(found.write_tb)
    assert found.read_tb == pytest.approx(500)
    assert found.write_tb == pytest.approx(125)


def test_more_gpus_take_less_time_and_cost_the_same() -> None:
    one, many = plan(gpus=1), plan(gpus=100)
    assert one.hours == pytest.approx(100 * many.hours)
    assert one.cost == pytest.approx(many.cost)
    assert many.read_gb_per_second == pytest.approx(100 * one.read_gb_per_second)


def test_every_assumption_is_printed_and_names_its_measurement() -> None:
    found = plan()
    text, rate = found.as_text(), known_rates()["h100"]
    assert all(assumption in text for assumption in found.assumptions)
    assert rate.source in text
    assert f"images: {rate.images}" in text
    assert rate.date in text
    assert "only one was measured" in text
    assert f"with {rate.cpu_cores} cores a GPU is bound by encode at {rate.encoder_alone:,.0f} " in text
    assert "only one was measured" not in plan(gpus=1).as_text()
    assert "cost" not in plan(price=None).as_text()


@pytest.mark.parametrize(
    ("cores", "rate", "bound"),
    [
        (16, 3780, ("encode", 3780)),
        (4, 3780, ("decode: CPU cores", 1600)),
        (64, 20_000, ("decode: JPEG engine", 15_000)),
    ],
)
def test_cores_engine_or_encoder_bind_a_mix_from_the_web(
    cores: float, rate: float, bound: tuple[str, float]
) -> None:
    assert web_mix_bound(cores, rate) == bound


@pytest.mark.parametrize(
    ("text", "count"),
    [("10M", 10e6), ("1.5B", 1.5e9), ("2k", 2e3), ("2K", 2e3), ("1T", 1e12), ("5e9", 5e9), ("300", 300.0)],
)
def test_a_number_of_images_may_have_a_suffix(text: str, count: float) -> None:
    assert read_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "many", "1.5Q", "1 0"])
def test_a_number_of_images_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--images .*: give a number such as 5e9, 10M or 1.5B"):
        read_count(text)


def test_hours_are_shown_as_minutes_or_days_where_that_reads_better() -> None:
    assert " minutes" in plan(images=1e6).as_text()
    assert " days)" in plan(gpus=1).as_text()


def test_an_unknown_gpu_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'tpu'.*there are .*h100"):
        plan(gpu="tpu")
    assert plan(gpu="H100") == plan()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--images", "0"), ("--images", "nan"), ("--images", "inf"), ("--gpus", "0"), ("--price", "-1"),
        ("--price", "nan"), ("--image-kb", "0"), ("--keep", "1.1"), ("--keep", "-0.1"),
    ],
)  # fmt: skip
def test_an_impossible_number_is_refused_by_its_flag(flag: str, value: str) -> None:
    given = {"--images": "5e9"} | {flag: value}
    done = CliRunner().invoke(app, ["plan", *(part for pair in given.items() for part in pair)])
    assert done.exit_code == 2
    assert f"{flag} {value}: give a" in done.stderr


def test_the_command_prints_text_or_json() -> None:
    done = call("--images", "5e9", "--gpus", "64", "--gpu", "h100", "--price", "2.5", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["gpu_hours"] == pytest.approx(plan().gpu_hours)
    assert found["assumptions"]
    assert "GPU-hours" in call("--images", "1e6").stdout


def test_an_impossible_number_is_exit_2_in_the_shell() -> None:
    for arguments in (("--images", "1e6", "--gpu", "abacus"), ("--images", "many"), ("--images", "-5")):
        done = call(*arguments)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
    assert "h100" in call("--images", "1e6", "--gpu", "abacus").stderr
