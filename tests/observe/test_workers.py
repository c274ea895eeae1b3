"""Several processes, one endpoint: each worker's numbers under its name; and the command line's flags."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from dali_aesthetic.config import Config
from dali_aesthetic.launch.run import run
from dali_aesthetic.observe import observing
from tests.observe.conftest import MODEL
from tests.observe.test_metrics import scrape

SMALL: dict[str, Any] = {"encoder": "ViT-S-32", "weights": "random:1", "heads": ["random:1"]}
"""Workers are processes of their own, which know open_clip's encoders only."""


@pytest.mark.slow
def test_the_launcher_serves_the_counters_of_all_workers(config: Callable[..., Config]) -> None:
    wanted = config(model=SMALL, launch={"workers": 2}, observe={"metrics_port": 0})
    said: list[str] = []
    with observing(wanted, None, said.append) as watch:
        result = run(wanted, watch=watch)
        values = scrape(said[0].removeprefix("metrics: "))
    workers = {labels[0] for name, labels in values if name == "samples_total"}
    assert workers == {"CPU 0", "CPU 1"}
    assert sum(values["samples_total", (name,)] for name in workers) == result.stats.num_samples == 36
    assert sum(values["bad_total", (name, "empty")] for name in workers) == 3
    assert sum(values["kept_total", (name,)] for name in workers) == result.stats.num_kept
    for name in workers:
        if values["samples_total", (name,)]:
            assert values["samples_per_second", (name,)] > 0
            assert values["queue_wait_seconds_total", (name, "decode", "consumer")] > 0
            assert values["stage_work_seconds_total", (name, "encode")] > 0
    assert values["shards_total", ("committed",)] == 3
    assert values["worker_deaths_total", ()] == 0


def test_the_flags_of_observers_reach_them(
    config: Callable[..., Config], source: Path, tmp_path: Path
) -> None:
    config()  # makes the encoder known
    model = ["--encoder", MODEL["encoder"], "--weights", "random:1", "--head", "random:1", "--device", "cpu"]
    log = tmp_path / "log.jsonl"
    flags = ["--metrics-port", "0", "--metrics-host", "localhost", "--log-json", str(log)]
    paths = ["--input", str(source / "00000.tar"), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["run", *paths, *model, *flags])
    assert done.exit_code == 0, done.output
    assert "metrics: http://localhost:" in done.stderr
    assert json.loads(log.read_text().splitlines()[-1])["event"] == "end"
    again = CliRunner().invoke(app, ["run", *paths, *model, *flags, "--quiet"])
    assert "metrics:" not in again.stderr
    wrong = CliRunner().invoke(app, ["run", *paths, *model, "--metrics-port", "70000"])
    assert wrong.exit_code == 2
