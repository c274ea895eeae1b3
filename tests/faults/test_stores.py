"""Runs from S3 to S3 give the bytes of a run to disk, also after faults or a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow.parquet as pq
import pytest

from tests.conftest import snapshot
from tests.faults.runs import MODEL, Command, Job, Zygote, assert_same, wait_for
from tests.faults.test_kill import KILLS
from tests.stores.fixtures import s3_server
from tests.stores.s3 import ENVIRONMENT, Bucket
from tests.stores.servers import Faults, proxy, web

__all__ = ["s3_server"]


@dataclass(frozen=True)
class Scene:
    """An input in a bucket, and the output of a run from there to a disk."""

    zygote: Zygote
    bucket: Bucket
    expected: dict[str, bytes]
    seconds: float = 0.0

    def start(
        self,
        output: str,
        endpoint: str = "",
        *more: str,
        source: str = "",
        faults: list[str] | None = None,
    ) -> Command:
        """Starts a run into `output` (below the bucket, or an absolute path) through `endpoint`."""
        where = output if output.startswith("/") else f"{self.bucket.url}/{output}"
        return self.zygote.start(
            *("run", "--input", source or f"{self.bucket.url}/in/", "--output", where),
            *MODEL,
            *more,
            faults=faults or [],
            environ={**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint or self.bucket.endpoint},
        )

    def finish(self, output: str) -> Command:
        """Runs the same command again, undisturbed, and asserts that the output is complete and unchanged."""
        command = self.start(output)
        assert command.wait(120) == 0, command.text
        assert_same(self.bucket.snapshot(output), self.expected)
        return command


@pytest.fixture(scope="module")
def scene(zygote: Zygote, source: Path, s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    bucket = Bucket.create(s3_server, f"runs-{uuid4().hex[:12]}")
    bucket.put_folder(source, "in")
    output = tmp_path_factory.mktemp("from-s3") / "out"
    begun = time.monotonic()
    command = Scene(zygote, bucket, {}).start(str(output))
    assert command.wait(120) == 0, command.text
    return Scene(zygote, bucket, snapshot(output), time.monotonic() - begun)


def assert_nothing_torn(scene: Scene, output: str) -> None:
    """Every object is whole, and every shard with stats has all its objects."""
    there = scene.bucket.snapshot(output)
    visible = {name: content for name, content in there.items() if not name.startswith(".")}
    assert [name for name, content in visible.items() if scene.expected.get(name) != content] == []
    for name in [Path(name).stem for name in visible if name.startswith("stats/")]:
        assert {f"shards/{name}.tar", f"scores/{name}.parquet"} <= visible.keys()


def test_a_run_from_s3_to_s3_gives_the_bytes_of_a_run_to_disk(scene: Scene, job: Job, tmp_path: Path) -> None:
    scene.finish("plain")
    assert not [key for key in scene.bucket.keys("plain/") if "/." in key], "the lock is gone"
    assert json.loads(scene.bucket.get("plain/run.json"))["identity"]["input"] == [f"{scene.bucket.url}/in/"]
    # From a local input only the name of the source differs.
    for name, content in job.expected.items():
        if name.startswith("shards/"):
            assert scene.expected[name] == content
        elif name.startswith("scores/"):
            (tmp_path / "a").write_bytes(content)
            (tmp_path / "b").write_bytes(scene.expected[name])
            ours, theirs = (pq.read_table(tmp_path / x).drop_columns(["source_shard"]) for x in "ab")
            assert ours.equals(theirs)
    assert "committed before, skipped" in " ".join(scene.finish("plain").text.split())


def test_store_faults_do_not_change_the_output(scene: Scene) -> None:
    """One request in nine fails, in four ways, and the link is slow."""
    faults = Faults(every={9: "503", 14: "cut", 19: "reset", 25: "500"}, bytes_per_second=2_000_000)
    with proxy(scene.bucket.endpoint, faults) as url:
        command = scene.start("faults", url)
        assert command.wait(120) == 0, command.text
    assert {fault.split()[0] for fault in faults.injected} == {"503", "cut", "reset", "500"}
    assert any("PUT" in fault for fault in faults.injected)
    assert_same(scene.bucket.snapshot("faults"), scene.expected)
    assert scene.bucket.unfinished_uploads() == 0


def test_a_run_killed_at_random_moments_resumes_to_the_same_objects(scene: Scene) -> None:
    seed = int(os.environ.get("DALI_AESTHETIC_SEED", time.time_ns() % 1_000_000))
    moments, kills, round_ = random.Random(seed), 0, 0
    while kills < max(4, KILLS // 2):
        command = scene.start(f"killed{round_}")
        time.sleep(moments.uniform(0.2, 1.1) * scene.seconds)
        os.kill(command.pid, signal.SIGKILL)
        if command.wait() == 0:
            scene.finish(f"killed{round_}")
            round_ += 1
            continue
        kills += 1
        assert_nothing_torn(scene, f"killed{round_}")
    scene.finish(f"killed{round_}")


def test_several_workers_at_one_url_give_the_same_objects(scene: Scene) -> None:
    command = scene.start("workers", "", "--workers", "2")
    assert command.wait(120) == 0, command.text
    assert_same(scene.bucket.snapshot("workers"), scene.expected)


def test_stats_are_the_last_object_of_a_shard(scene: Scene) -> None:
    faults = Faults()
    with proxy(scene.bucket.endpoint, faults) as url:
        assert scene.start("order", url).wait(120) == 0
    written = [path.partition("?")[0] for method, path, _ in faults.log if method == "PUT"]
    for name in ("00000", "00001", "00002", "00003"):
        of_shard = [path.rpartition("/order/")[2] for path in written if name in path]
        assert of_shard == [f"shards/{name}.tar", f"scores/{name}.parquet", f"stats/{name}.json"]
    listings = [path for method, path, _ in faults.log if method == "GET" and "order%2Fstats" in path]
    assert len(listings) == 1, "what is committed is known from one listing"


def test_a_store_that_refuses_to_be_written_ends_the_run(scene: Scene) -> None:
    with proxy(scene.bucket.endpoint, Faults(pattern="PUT .*/scores/", every={1: "403"})) as url:
        command = scene.start("refused", url)
        assert command.wait(120) == 1, command.text
    assert "access denied" in " ".join(command.text.split())
    assert scene.bucket.keys("refused/stats") == []
    scene.finish("refused")


def test_a_second_run_at_one_url_is_refused(scene: Scene) -> None:
    first = scene.start("busy", faults=["slow:check:1"])
    wait_for(lambda: "busy/.lock" in scene.bucket.keys("busy/"), first)
    second = scene.start("busy")
    assert second.wait(120) == 2, second.text
    assert f"is being written by process {first.pid} on " in " ".join(second.text.split())
    assert first.wait(120) == 0, first.text
    scene.finish("busy")


def test_another_config_at_one_url_is_refused(scene: Scene) -> None:
    scene.finish("mine")
    other = scene.start("mine", source=f"{scene.bucket.url}/in/00000.tar")
    assert other.wait(120) == 2
    assert "another run" in " ".join(other.text.split())


@pytest.mark.parametrize("ranges", [True, False], ids=["with Range", "without Range"])
def test_a_run_from_a_web_server(scene: Scene, job: Job, source: Path, tmp_path: Path, ranges: bool) -> None:
    files = {f"/data/{path.name}": path.read_bytes() for path in source.glob("*.tar")}
    with web(files, ranges=ranges) as url:
        command = scene.start(str(tmp_path / "out"), source=f"{url}/data/{{00000..00003}}.tar")
        assert command.wait(120) == 0, command.text
    got = snapshot(tmp_path / "out")
    assert {name: got[name] for name in job.expected if name.startswith("shards/")} == {
        name: content for name, content in job.expected.items() if name.startswith("shards/")
    }


def test_verify_report_and_filter_work_on_an_output_at_a_url(scene: Scene, tmp_path: Path) -> None:
    scene.finish("looked-at")
    environ = {**ENVIRONMENT, "AWS_ENDPOINT_URL": scene.bucket.endpoint}
    output = f"{scene.bucket.url}/looked-at"
    source = f"{scene.bucket.url}/in/"

    def ask(*arguments: str) -> str:
        command = scene.zygote.start(*arguments, environ=environ)
        assert command.wait(120) == 0, command.text
        return " ".join(command.text.split())

    assert "4 shards, 160 samples" in ask("verify", output, "--against-input")
    assert "every kept byte is its input's" in ask("verify", output, "--against-input")
    assert ask("report", output).endswith(f"{output}/report.html")
    assert b"<html" in scene.bucket.get("looked-at/report.html")
    assert "160" in ask("inspect", "--input", source, "--shards", "4")
    cut = f"{scene.bucket.url}/cut"
    ask("filter", "--input", source, "--scores", output, "--output", cut, "--raw-threshold", "5")
    assert_same(scene.bucket.snapshot("cut"), scene.expected)
