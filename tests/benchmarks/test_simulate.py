"""The simulation: what must hold for any cluster, and plateaus that arithmetic predicts."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.cluster import Cluster, simulate
from benchmarks.plots import write_plots
from benchmarks.result import read_result
from benchmarks.simulate import QUICK_WORKERS, Assumptions, cases, write_simulation
from dali_aesthetic.cost import known_rates

PLAIN = Cluster(workers=8, shards=2000, shard_seconds=4.0, shard_gb=1.0)
ROUGH = replace(
    PLAIN, shard_spread=0.5, slow_share=0.25, hours_between_failures=0.05, restart_seconds=10.0, seed=3
)


def test_workers_alike_take_what_division_says() -> None:
    assert simulate(PLAIN).seconds == pytest.approx(2000 / 8 * 4)
    assert simulate(replace(PLAIN, workers=1)).seconds == pytest.approx(2000 * 4)
    assert simulate(replace(PLAIN, workers=5000)).seconds == pytest.approx(4)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("workers", [1, 7, 64])
def test_every_shard_is_done_exactly_once_whatever_fails(static: bool, workers: int) -> None:
    outcome = simulate(replace(ROUGH, static=static, workers=workers, storage_gb_s=20.0, handouts_per_s=9.0))
    assert outcome.failures > 0
    assert outcome.lost_seconds > 0
    assert set(outcome.done) == {1}


def test_the_same_seed_is_the_same_run_and_another_is_another() -> None:
    assert simulate(ROUGH) == simulate(ROUGH)
    assert simulate(ROUGH).seconds != simulate(replace(ROUGH, seed=4)).seconds


def test_more_workers_are_never_slower_under_dynamic_hand_out() -> None:
    uneven = replace(PLAIN, shard_spread=1.0)
    times = [simulate(replace(uneven, workers=workers)).seconds for workers in range(1, 40)]
    assert all(more <= fewer + 1e-6 for fewer, more in pairwise(times))


def test_storage_sets_the_plateau_that_division_predicts() -> None:
    limited = replace(PLAIN, storage_gb_s=5.0)
    rates = {
        workers: simulate(replace(limited, workers=workers)).shards_per_second for workers in (4, 40, 400)
    }
    assert rates[4] == pytest.approx(4 / 4.0, rel=0.01)  # the workers are the limit: one shard in 4 s each
    assert rates[40] == pytest.approx(5.0, rel=0.01)  # the storage is: 5 GB/s, shards of 1 GB
    assert rates[400] == pytest.approx(5.0, rel=0.01)


def test_one_who_hands_out_sets_a_plateau_too() -> None:
    limited = replace(PLAIN, workers=400, handouts_per_s=10.0)
    assert simulate(limited).shards_per_second == pytest.approx(10.0, rel=0.05)


def test_a_slow_worker_holds_up_a_static_split_and_not_a_dynamic_one() -> None:
    slow = replace(PLAIN, workers=20, slow_share=0.1, slow_speed=0.25)
    static, dynamic = simulate(replace(slow, static=True)), simulate(slow)
    assert static.seconds == pytest.approx(2000 / 20 * 4 / 0.25)
    assert dynamic.seconds < 0.5 * static.seconds


def test_failures_cost_what_was_in_hand_and_the_restart() -> None:
    failing = replace(PLAIN, workers=1, shards=20_000, hours_between_failures=0.1, restart_seconds=30.0)
    outcome = simulate(failing)
    expected = 20_000 * 4 + outcome.lost_seconds + 30 * outcome.failures
    assert outcome.seconds == pytest.approx(expected)
    assert outcome.failures == pytest.approx(outcome.seconds / (360 + 30), rel=0.2)


def test_what_can_not_be_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        Cluster(workers=0, shards=1, shard_seconds=1.0)


def test_the_quick_form_writes_a_result_and_a_plot(tmp_path: Path) -> None:
    rate = known_rates()["h100"]
    result = read_result(write_simulation(tmp_path, "h100", rate, 1000, QUICK_WORKERS))
    assert len(result.rows) == len(cases(Assumptions().cluster(1.0, 1))) * len(QUICK_WORKERS)
    assert all(row.of_limit is not None and 0 < row.of_limit <= 1 for row in result.rows)
    assert rate.source in result.content["note"]
    (plot,) = write_plots([result], tmp_path)
    assert "static split" in plot.read_text()


def test_the_result_says_with_what_options_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["simulate", "--quick", "--shards", "300", "--gpu", "H100"]
    monkeypatch.setattr(sys, "argv", ["x", *command, "--results", str(tmp_path)])
    assert CliRunner().invoke(app, sys.argv[1:]).exit_code == 0
    (path,) = tmp_path.glob("simulation_h100_*.json")
    assert read_result(path).content["command"] == f"python -m benchmarks {' '.join(command)}"


@pytest.mark.parametrize("options", [("--gpu", "a100"), ("--shards", "-3")])
def test_options_that_can_not_be_are_named(tmp_path: Path, options: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, ["simulate", "--quick", "--results", str(tmp_path), *options])
    assert shown.exit_code == 2
    assert options[0] in shown.output
