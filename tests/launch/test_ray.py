"""A real Ray on this machine writes the bytes of a single process, whichever actor dies."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.launch.cluster import actor
from dali_aesthetic.launch.cluster.actor import TASK, ShardWorker, WorkerSpec
from dali_aesthetic.launch.cluster.driver import MOST_SHARDS_A_TASK, tasks
from dali_aesthetic.launch.cluster.state import ClusterState
from dali_aesthetic.launch.run import run
from dali_aesthetic.overlap import every
from dali_aesthetic.stats import RunStats, Tally
from dali_aesthetic.stores.settings import StoreSettings
from dali_aesthetic.types import Shard, ShardReport
from tests.conftest import REPOSITORY, jpeg, snapshot, write_shard
from tests.docs.commands import parse_flags
from tests.faults.runs import assert_same, noise
from tests.stores.fixtures import bucket, s3_server
from tests.stores.s3 import Bucket

__all__ = ["bucket", "s3_server"]

NUM_SHARDS, PER_SHARD = 6, 12
SOAK = "DALI_AESTHETIC_KILLS" in os.environ


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of 12 images, one of them empty, and one file that is no tar."""
    folder = tmp_path_factory.mktemp("ray")
    for shard in range(NUM_SHARDS):
        images = {f"{shard}{i:03d}": jpeg(noise(64 + i, 100 * shard + i)) for i in range(PER_SHARD - 1)}
        write_shard(folder / f"{shard:05d}.tar", {**images, f"{shard}999": b""})
    (folder / "broken.tar").write_bytes(b"no tar at all" * 100)
    return folder


def config(source: Path | str, output: Path | str, **launch: Any) -> Config:
    return Config.build(
        {
            "input": str(source),
            "output": str(output),
            "device": "cpu",
            "threshold": {"raw": 5.0},
            "model": {"encoder": "ViT-S-32-alt", "weights": "random:1", "heads": ["random:1"]},
            "decode": {"batch_size": 4, "num_threads": 1},
            "launch": launch,
        }
    )


class Killer:
    """Kills workers that have a shard open: that wrote some of it and did not commit it yet.

    The first one over any shard; with `name` each one over that shard.
    """

    def __init__(self, output: Path, name: str = "") -> None:
        self.killed: list[str] = []
        self._shards, self._once = output / "shards", not name
        self._pattern = f".tmp-*-{sha256(f'{name}.tar'.encode()).hexdigest()[:16] if name else '*'}"

    @contextmanager
    def watch(self, stats: RunStats, num_shards: int) -> Iterator[None]:
        with every(0.005, self._look, "killer"):
            yield

    def _look(self) -> None:
        for path in self._shards.glob(self._pattern):
            if path.name not in self.killed and not (self._once and self.killed):
                self.killed.append(path.name)
                os.kill(int(path.name.split("-")[-3]), signal.SIGKILL)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As an actor with one CPU has it: on how many threads a product is split decides its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_actor_changes_no_byte_and_no_count(
    cluster: object, one_thread: None, source: Path, tmp_path: Path
) -> None:
    one = run(config(source, tmp_path / "one"))
    output = tmp_path / "ray"
    killer = Killer(output)
    result = run(config(source, output, engine="ray", workers=2), watch=killer.watch)
    stats = result.stats
    assert killer.killed
    assert ["was lost" in incident for incident in stats.incidents] == [True], stats.incidents
    assert_same(snapshot(output), snapshot(tmp_path / "one"))
    reports = {report.name: report for report in stats.reports}
    assert reports == {report.name: report for report in one.stats.reports}, "each shard is reported once"
    assert len(stats.reports) == NUM_SHARDS + 1
    assert [report.name for report in stats.failed] == ["broken"]
    assert result.exit_code == one.exit_code == 1
    counts = (stats.num_samples, stats.num_kept, stats.num_scored, stats.statuses)
    assert counts == (one.stats.num_samples, one.stats.num_kept, one.stats.num_scored, one.stats.statuses)
    # A worker that took over may have been left nothing; what the dead one did counts twice.
    assert sum(tally.num_samples for tally in stats.workers.values()) >= stats.num_samples
    assert json.loads((output / "run.json").read_text())["config"]["launch"]["engine"] == "ray"


@pytest.mark.ray
@pytest.mark.slow
def test_actors_use_the_bucket_settings_of_the_driver(
    cluster: object, one_thread: None, bucket: Bucket, source: Path, tmp_path: Path
) -> None:
    """The cluster was there before the bucket's endpoint and keys were in the environment."""
    for name in ("00000", "00001"):
        bucket.put(f"in/{name}.tar", (source / f"{name}.tar").read_bytes())
    url = f"{bucket.url}/in/{{00000..00001}}.tar"
    run(config(url, tmp_path / "one"))
    result = run(config(url, f"{bucket.url}/out", engine="ray", workers=1))
    assert result.exit_code == 0, result.stats.failed
    objects = {key: content for key, content in bucket.snapshot("out").items() if key != ".lock"}
    assert_same(objects, snapshot(tmp_path / "one"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_configuration_error_of_an_actor_is_raised_by_the_driver(
    cluster: object, source: Path, tmp_path: Path
) -> None:
    wrong = config(source, tmp_path / "out", engine="ray", workers=1)
    weights = wrong.model.model_copy(update={"weights": str(tmp_path / "none.pt")})
    with pytest.raises(ConfigError, match=r"none\.pt"):
        run(wrong.model_copy(update={"model": weights}))
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.ray
@pytest.mark.skipif(not SOAK, reason="a minute of deaths: make soak")
def test_a_shard_that_kills_three_workers_is_given_up_and_the_others_finish(
    cluster: object, source: Path, tmp_path: Path
) -> None:
    killer = Killer(tmp_path, "00002")
    result = run(config(source, tmp_path, engine="ray", workers=2), watch=killer.watch)
    failed = {report.name: report.error for report in result.stats.failed}
    assert failed.keys() == {"00002", "broken"}
    assert failed["00002"] == "a worker died over it 3 times; the last one was lost"
    assert len(killer.killed) == len(result.stats.incidents) == 3
    assert len(result.stats.reports) == NUM_SHARDS + 1
    assert not (tmp_path / "stats" / "00002.json").exists()
    assert not list(tmp_path.rglob(".tmp-*")), "what the dead left is removed"


@pytest.mark.ray
@pytest.mark.skipif(not SOAK, reason="starts a Ray of its own beside the other: make soak")
def test_a_signal_ends_the_driver_in_order(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    inputs = tmp_path / "many"
    inputs.mkdir()
    for number in range(200):
        (inputs / f"{number:05d}.tar").symlink_to(source / "00000.tar")
    flags = "--device cpu --encoder ViT-S-32-alt --weights random:1 --head random:1 --num-threads 1"
    command = f"run --input {inputs} --output {output} --engine ray --workers 1 {flags}"
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "dali_aesthetic", *shlex.split(command)], stdout=log, stderr=log
        )
        deadline = time.monotonic() + 120
        while not list(output.glob("stats/*.json")):
            assert driver.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        driver.send_signal(signal.SIGTERM)
        code = driver.wait(60)
    text = (tmp_path / "log").read_text()
    assert code == 143, text
    assert "stopped by SIGTERM" in text
    assert not (output / ".lock").exists()
    assert len(list(output.glob("stats/*.json"))) < 200, "it was to be stopped before the end"


def shard(name: str) -> Shard:
    return Shard(index=0, name=name, kind="tar", source=f"{name}.tar")


def test_a_task_begun_again_redoes_its_open_shards_and_reports_the_done_ones() -> None:
    state = ClusterState()
    shards = [shard(name) for name in "abcd"]
    assert state.begin_task(shards).fresh == tuple(shards)
    for name in "abc":
        state.begin_shard(name)
    done = ShardReport(name="a", source="a.tar", num_samples=3)
    state.add_report(done, "GPU 0", Tally(num_samples=5))
    task = state.begin_task(shards)
    assert [one.name for one in task.fresh] == ["d"]
    assert [one.name for one in task.suspects] == ["b", "c"], "which of the two did it is not known"
    assert task.reports == (done,)
    progress = state.progress()
    assert progress.incidents == ("a worker was lost; it was at b, c",)
    assert progress.workers == {"GPU 0": Tally(num_samples=5)}


def test_a_shard_is_given_up_at_its_third_death_and_its_neighbours_are_not() -> None:
    state = ClusterState()
    shards = [shard("a"), shard("b")]
    state.begin_task(shards)
    state.begin_shard("a")
    state.begin_shard("b")
    state.begin_task(shards)
    state.begin_shard("a")
    state.add_report(ShardReport(name="a", source="a.tar"), "GPU 0", Tally())
    state.begin_shard("b")
    state.end_worker("ended by RuntimeError: CUDA error")
    assert [one.name for one in state.begin_task(shards).suspects] == ["b"]
    state.begin_shard("b")
    task = state.begin_task(shards)
    assert task.fresh == task.suspects == ()
    errors = {report.name: report.error for report in task.reports}
    assert errors == {"a": "", "b": "a worker died over it 3 times; the last one was lost"}
    assert "CUDA error" in state.progress().incidents[1]


def test_a_worker_counts_on_from_the_one_that_died_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    state = ClusterState()
    state.set_tally("node GPU 0", Tally(num_samples=1000, seconds=60))
    monkeypatch.setattr(actor, "_name", lambda spec: "node GPU 0")
    monkeypatch.setattr(actor, "_on_this_node", lambda spec: (spec.config, 1))
    monkeypatch.setattr(ShardWorker, "_build", lambda self, identity: None)
    monkeypatch.setattr(
        ShardWorker, "_call", lambda self, method, *arguments: getattr(state, method)(*arguments)
    )
    spec = WorkerSpec(
        config=config("in", "out"),
        folder="",
        stores=StoreSettings.here(),
        gpus_each=1,
        cpus_each=1,
        most_workers=None,
    )
    assert ShardWorker(spec, {}, state)._counter.tally() == Tally(num_samples=1000, seconds=60)


def test_the_first_fatal_error_is_kept_for_the_driver() -> None:
    state = ClusterState()
    state.fail_run(OSError(28, "No space left on device"))
    state.fail_run(ConfigError("another"))
    assert isinstance(state.progress().fatal, OSError)


@pytest.mark.parametrize(
    ("num_shards", "num_workers", "size"), [(1, 8, 1), (100, 2, 6), (10_000, 8, MOST_SHARDS_A_TASK)]
)
def test_tasks_hold_all_shards_in_order(num_shards: int, num_workers: int, size: int) -> None:
    shards = [shard(str(index)) for index in range(num_shards)]
    names = [[one["name"] for one in json.loads(row[TASK])] for row in tasks(shards, num_workers)]
    assert [name for task in names for name in task] == [one.name for one in shards]
    assert {len(task) for task in names[:-1]} <= {size}


def test_a_missing_ray_is_an_error_that_names_the_extra(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--engine ray needs the package ray .*\[ray\].* on every node"):
        run(config(source, tmp_path, engine="ray"))


def test_rays_launcher_accepts_the_example_cluster() -> None:
    text = (REPOSITORY / "configs" / "ray-cluster.yaml").read_text()
    cluster = yaml.safe_load(text)
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))
    assert cluster["head_node_type"] in cluster["available_node_types"]
    commands = re.findall(r"dali-aesthetic (\w+.*)", text)
    assert any("--engine ray" in command for command in commands)
    for command in commands:
        parse_flags(tuple(shlex.split(command)))
    (extras,) = re.findall(r"dali-aesthetic\[(.*)\]", text)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
