"""The JSON log tells the run from start to end, one object a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.launch.run import run
from dali_aesthetic.observe import log, observing
from dali_aesthetic.observe.log import json_log
from dali_aesthetic.stats import RunStats, Tally
from dali_aesthetic.types import ShardReport


def events(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(datetime.fromisoformat(line["time"]).utcoffset() is not None for line in lines)
    return lines


def test_a_run_is_logged_from_start_to_end(config: Callable[..., Config], tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    wanted = config(observe={"log_json": str(path)})
    with observing(wanted, None) as watch:
        result = run(wanted, watch=watch)
    lines = events(path)
    shards = lines[1:-1]
    assert [line["event"] for line in lines] == ["start", *["shard_committed"] * 3, "shard_failed", "end"]
    assert lines[0]["shards"] == 4
    assert [line["name"] for line in shards] == ["00000", "00001", "00002", "00003"]
    assert shards[0]["statuses"] == {"ok": 10, "undecodable": 1, "empty": 1}
    assert (shards[3]["level"], "not a tar" in shards[3]["error"]) == ("error", True)
    end = lines[-1]
    assert (end["samples"], end["kept"], end["bad"]) == (36, result.stats.num_kept, 6)
    assert (end["committed"], end["failed"], end["level"], end["error"]) == (3, 1, "error", "")
    assert list(end["first"]) == ["storage", "decode", "encode", "scores", "commit"]
    assert 0 < end["first"]["commit"] <= end["seconds"]
    with observing(wanted, None) as watch:
        run(wanted, watch=watch)
    again = events(path)[len(lines) :]
    assert [line["event"] for line in again] == ["start", "shard_failed", "end"], "a rerun adds to it"


def test_the_last_line_has_the_error_that_ended_the_run(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with (
        json_log(str(path)) as log,
        pytest.raises(OSError, match="full"),
        log.watch(RunStats(), 1),
    ):
        raise OSError("the disk is full")
    end = events(path)[-1]
    assert (end["event"], end["level"], end["error"]) == ("end", "error", "OSError: the disk is full")


def test_progress_and_deaths_of_workers_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_PROGRESS_SECONDS", 0.0)
    stats = RunStats()
    path = tmp_path / "log.jsonl"
    with json_log(str(path)) as file, file.watch(stats, 0):
        stats.set_worker("CPU 0", Tally(num_samples=7))
        stats.incidents.append("CPU 1 died")
    found = {line["event"]: line for line in events(path)}
    assert found["worker_died"]["message"] == "CPU 1 died"
    assert found["progress"]["workers"] == {"CPU 0": 7}
    assert found["end"]["level"] == "info"


def test_no_shard_is_logged_twice_however_many_end_between_two_polls(tmp_path: Path) -> None:
    stats, path = RunStats(), tmp_path / "log.jsonl"
    with json_log(str(path)) as file:
        follower = log.Follower(file.write, stats, 30.0)
        stats.reports += [ShardReport(name=str(index), source="a.tar") for index in range(1500)]
        follower.poll()
        follower.poll()
        stats.reports.append(ShardReport(name="last", source="a.tar"))
        follower.poll()
    names = [line["name"] for line in events(path)]
    assert names == [*map(str, range(500, 1500)), "last"]


def test_a_dash_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with json_log("-") as log:
        log.write("start")
    assert json.loads(capsys.readouterr().err)["event"] == "start"


def test_a_file_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"--log-json .*Is a directory; give a file"),
        json_log(str(tmp_path)),
    ):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_ends_the_log_with_a_warning_and_not_the_run(
    config: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "log.jsonl"
    target.symlink_to("/dev/full")
    wanted = config(observe={"log_json": str(target)})
    with observing(wanted, None) as watch:
        result = run(wanted, watch=watch)
    assert len(result.stats.reports) == 4
    told = [record.getMessage() for record in caplog.records if "--log-json" in record.getMessage()]
    assert told == [f"--log-json {target} ends here, the run goes on: No space left on device"]
