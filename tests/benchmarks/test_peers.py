"""Peers: reasons of those that can't run here, their workers, and the counts that are compared."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from benchmarks.check import PEER
from benchmarks.datasets import DatasetSpec
from benchmarks.open_clip_model import saved_weights
from benchmarks.peers import side_by_side
from benchmarks.peers.hf_clip import hf_state
from benchmarks.peers.job import Gate, Job, Unavailable, images_of, with_fewer
from benchmarks.peers.side_by_side import (
    PEERS,
    answer,
    kept_fidelity,
    left_out,
    make_job,
    measure_peers,
    score_error,
    why,
)
from benchmarks.results import Record, read_result
from benchmarks.settings import Settings
from benchmarks.tables import OURS
from dali_aesthetic.score.clip import VisionTower
from dali_aesthetic.score.weights import load_tower
from tests.benchmarks.test_roofline import SMALL

NEMO = "NeMo Curator, its stages in one process"
RAY = "NeMo Curator, its pipeline with Ray Data"


def a_job(tmp_path: Path, **change: object) -> Job:
    fields = {
        "tars": ("a.tar", "b.tar", "c.tar"), "per_tar": 10, "output": str(tmp_path), "device": "cpu",
        "encoder": "ViT-B-32", "weights": "random:0", "head": "random:0", "cut": 0.0, "precision": "fp32",
        "num_workers": 1, "backend": "auto", "our_precision": "auto", "batch_size": 0, "max_images": 20,
    }  # fmt: skip
    return Job(**(fields | change))  # type: ignore[arg-type]


def write(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def test_a_job_travels_as_json_and_bounds_a_slow_peer(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job
    assert job.few_tars() == ("a.tar", "b.tar")
    assert a_job(tmp_path, max_images=3).few_tars() == ("a.tar",)


@pytest.mark.parametrize("title", [title for title in PEERS if title != "dali_aesthetic"])
def test_a_peer_that_can_not_run_gives_its_reason(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(job: Job) -> None:
        raise Unavailable("a package is missing")

    monkeypatch.setattr(f"benchmarks.peers.{PEERS[title].module}.{PEERS[title].function}", unavailable)
    a_job(tmp_path).write(tmp_path / "job.json")
    answer(title, tmp_path / "job.json", tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == {"skipped": "a package is missing"}


def test_a_peer_that_fails_says_why_and_leaves_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(job: Job) -> None:
        raise MemoryError("ray::Reader()\n  File x.py\n\x1b[36mMemoryError\x1b[39m: CUDA allocation failed")

    monkeypatch.setattr("benchmarks.peers.nemo_curator.run_with_ray", failing)
    a_job(tmp_path).write(tmp_path / "job.json")
    answer(RAY, tmp_path / "job.json", tmp_path / "result.json")
    found = json.loads((tmp_path / "result.json").read_text())
    assert found == {"skipped": "failed: MemoryError: CUDA allocation failed"}
    assert "Traceback" in capsys.readouterr().err


_QUOTED = """\x1b[36mray::MapBatches(ReaderTask)()\x1b[39m (pid=1)
  File "/a/site/backends/base.py", line 104, in process_batch
    results = self.stage.process_batch(tasks)
              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/a/nvidia/dali/pipeline.py", line 1238, in build
    self._pipe.Build(self._generate_build_args())
RuntimeError: Critical error when building pipeline:
Error in CPU operator, with the traceback:

  File "/a/image_reader.py", line 77, in webdataset_pipeline
    img_raw = fn.readers.webdataset(

encountered:

File mapping failed: /a/b/none.tar
C++ context: [/opt/dali/util/mmaped_file.cc:105]
Current pipeline object is no longer valid.

The above exception was the direct cause of the following exception:

\x1b[36mray::MapBatches(ReaderTask)()\x1b[39m (pid=1)
ray.exceptions.UserCodeException: UDF failed to process a data block.
Failed to apply UDF transform after 1/1 attempts."""
"""As Ray Data hands a worker's error on."""


def test_the_reason_of_a_failure_is_one_line_from_the_last_exception_on() -> None:
    assert why(KeyError("a")) == "KeyError: 'a'"
    assert why(RuntimeError("first\n  second")) == "RuntimeError: first second"
    assert why(RuntimeError("a worker\nray.exceptions.ActorDiedError: it died\n  of x")).endswith(
        "ActorDiedError: it died of x"
    )
    assert why(RuntimeError(_QUOTED)) == (
        "RuntimeError: Critical error when building pipeline: Error in CPU operator, with the traceback: "
        "encountered: File mapping failed: none.tar C++ context: [mmaped_file.cc:105] "
        "Current pipeline object is no longer valid."
    )
    advice = "\nSearch for `cudaErrorMemoryAllocation' in docs.\nFor debugging consider X\n"
    assert (
        why(RuntimeError(f"CUDA error: out of memory{advice}")) == "RuntimeError: CUDA error: out of memory"
    )
    assert why(ValueError("see https://x.org/a/b")) == "ValueError: see https://x.org/a/b"
    long = why(RuntimeError("b" + 400 * "x" + "e"))
    assert (long[:15], long[-2:], len(long)) == ("RuntimeError: b", "xe", 303)


def test_where_fp8_can_not_run_its_row_has_the_reason(tmp_path: Path) -> None:
    from benchmarks.peers.ours import run_fp8

    image = tmp_path / "a.tar"
    write(image, {"0.jpg": b"never read"})
    with pytest.raises(Unavailable, match="precision fp8 can't run here"):
        run_fp8(a_job(tmp_path, tars=(str(image),)))
    with pytest.raises(Unavailable, match="backend auto and precision fp16 are asked for"):
        run_fp8(a_job(tmp_path, our_precision="fp16"))


def test_the_peer_of_the_guard_comes_early_and_the_longest_start_last() -> None:
    order = list(PEERS)
    assert order[0] == OURS
    assert order.index(PEER) < min(order.index(title) for title, peer in PEERS.items() if peer.share < 1)
    assert order[-1] == RAY == max(PEERS, key=lambda title: PEERS[title].more_s)
    assert (PEERS[OURS].module, PEERS[PEER].module) == ("ours", "dataloader")  # what the guard compares


def test_all_peers_read_the_same_weights_from_a_file(tmp_path: Path) -> None:
    path = saved_weights("ViT-B-32", "random:3", tmp_path)
    drawn, read = (load_tower("ViT-B-32", name, None)[0].state_dict() for name in ("random:3", path))
    assert drawn.keys() == read.keys()
    assert all(torch.equal(drawn[name], read[name]) for name in drawn)
    assert saved_weights("ViT-B-32", "random:3", tmp_path) == path
    assert saved_weights("ViT-B-32", "openai", tmp_path) == "openai"


def test_on_a_gpu_runs_are_long_and_slow_peers_get_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "make_dataset", link_tars)
    monkeypatch.setattr(side_by_side, "saved_weights", lambda encoder, weights, folder: weights)
    monkeypatch.setattr(Settings, "on_gpu", True)
    for cores, tars in ((1, 10), (8, 80), (16, 160), (24, 144), (192, 192)):
        monkeypatch.setattr(side_by_side, "cpu_count", lambda cores=cores: cores)
        job = make_job(Settings(device="cpu", data=tmp_path))
        assert (len(job.tars), len(job.warm_tars())) == (tars, cores)
        assert len(job.tars) % cores == 0
        if cores == 16:
            given = {
                peer.output: int(job.max_images * peer.share) for peer in PEERS.values() if peer.share < 1
            }
            assert job.max_images == 40_960
            assert given == {
                "nemo_curator-run": 768,
                "nemo_curator-run_with_ray": 6144,
                "data_juicer-run": 1536,
            }


def link_tars(folder: Path, spec: DatasetSpec, num_processes: int) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(spec.num_shards):
        (folder / f"bench-{number:05d}.tar").touch()
    return str(folder / "bench-*.tar")


def test_images_are_found_by_extension_in_the_order_of_the_tar() -> None:
    names = ("b.webp", "b.json", "a.jpg", "a.txt", "c.gif", "d.AVIF", "d.txt")
    assert images_of(names) == {"b": "b.webp", "a": "a.jpg", "c": "c.gif", "d": "d.AVIF"}
    assert list(images_of(names, ("jpg", "webp"))) == ["b", "a"]


def test_a_dataloader_reads_every_format_with_the_references_steps() -> None:
    from benchmarks.peers.dataloader import ToPixels

    reference = open_clip.image_transform(32, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    for format, mode in (("jpeg", "L"), ("png", "RGBA"), ("webp", "RGB"), ("gif", "P"), ("avif", "RGB")):
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, format)
        key, pixels_HWC = ToPixels(32)({"__key__": "1", "txt": b"a", format: buffer.getvalue()})
        expected = (255 * reference(Image.open(buffer))).round().to(torch.uint8).permute(1, 2, 0)
        assert key == "1"
        assert torch.equal(pixels_HWC, expected), format


def test_dalis_scores_by_position_go_to_the_keys_of_what_it_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.peers import dali_compile

    class Brightness(torch.nn.Module):
        def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
            brightness = pixels_NCHW.mean((1, 2, 3))
            return torch.stack([brightness, torch.ones_like(brightness)], dim=1)

    images = {"0.webp": 200, "1.gif": 250, "2.jpg": 20, "2.txt": 0, "3.avif": 0, "4.png": 110}
    members = {}
    for name, level in images.items():
        buffer = io.BytesIO()
        if not name.endswith("txt"):
            format = {"jpg": "jpeg"}.get(name[2:], name[2:])
            Image.new("RGB", (40, 50), (level,) * 3).save(buffer, format)
        members[name] = buffer.getvalue()
    tar = write(tmp_path / "a.tar", members)
    monkeypatch.setattr(dali_compile, "open_clip_tower", lambda spec, weights: Brightness())
    monkeypatch.setattr(Job, "head_layer", lambda job: torch.nn.Identity())
    job = a_job(tmp_path, tars=(tar, tar, tar), per_tar=5, max_images=15)
    found = dali_compile.run(job)  # a warm-up of a batch of 8, which is no whole number of tars
    assert sorted(found.scores, key=found.scores.__getitem__) == ["2", "4", "0"]
    assert found.num_images == 16
    assert left_out(found.scores, tar)["left_out"] == {"gif": 1, "avif": 1}


def test_the_first_pass_of_a_dataloader_warms_up_on_few_tars() -> None:
    from benchmarks.peers.dataloader import _Passes

    passes = _Passes(("a.tar",), ("a.tar", "b.tar"))
    assert [[one["url"] for one in passes()] for _ in range(2)] == [["a.tar"], ["a.tar", "b.tar"]]


def test_without_its_package_data_juicer_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.peers import data_juicer

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="py-data-juicer is not installed"):
        data_juicer.run(a_job(tmp_path))


def test_a_gpu_that_refuses_processes_gets_half_as_many() -> None:
    tried = []

    def measure(count: int) -> str:
        tried.append(count)
        if count > 8:
            raise RuntimeError("torch.AcceleratorError: CUDA error: out of memory")
        return "measured"

    assert with_fewer(measure, 16) == "measured"
    assert tried == [16, 8]
    with pytest.raises(RuntimeError, match="out of memory"):
        with_fewer(measure, 33)
    assert tried == [16, 8, 33, 16]


def length_scorer(job: Job) -> Callable[[bytes], float]:
    return len


def picky_scorer(job: Job) -> Callable[[bytes], float]:
    def score(image: bytes) -> float:
        if image == b"?":
            raise OSError("cannot identify image file")
        return 1.0

    return score


def failing_scorer(job: Job) -> Callable[[bytes], float]:
    raise RuntimeError("no model")


def test_images_are_dealt_out_to_processes_once_each(tmp_path: Path) -> None:
    from benchmarks.peers.data_juicer import score_in_processes

    images = {f"{number:03d}.jpg": bytes(number + 1) for number in range(7)}
    tar = write(tmp_path / "a.tar", images | {"000.txt": b"a caption"})
    job = a_job(tmp_path, tars=(tar,), per_tar=7, num_workers=2)
    scores, count, seconds = score_in_processes(job, length_scorer)
    assert scores == {name[:3]: len(data) for name, data in images.items()}
    assert count == 7
    assert seconds > 0
    with pytest.raises(RuntimeError, match="no model"):
        score_in_processes(a_job(tmp_path, tars=(tar,), per_tar=7), failing_scorer)


def test_images_that_pillow_can_not_read_are_left_out_of_scores_and_counts(tmp_path: Path) -> None:
    from benchmarks.peers.data_juicer import score_in_processes

    tar = write(tmp_path / "a.tar", {"0.gif": b"GIF", "1.png": b"?", "2.avif": b"AVIF"})
    scores, count, _ = score_in_processes(a_job(tmp_path, tars=(tar,), per_tar=3), picky_scorer)
    assert (scores, count) == ({"0": 1.0, "2": 1.0}, 2)
    assert left_out(scores, tar) == {"images_in_a_tar": 3, "left_out": {"png": 1}}
    assert left_out({**scores, "1": None}, tar) == left_out(scores, tar)


def test_a_gate_opens_with_the_last_worker_it_waits_for(tmp_path: Path) -> None:
    gate = Gate(str(tmp_path / "ready"), 2)
    gate.arrive()
    with pytest.raises(TimeoutError, match="1 of 2 workers"):
        gate.wait(0.05)
    for name, arrived in (("0", 1000.0), ("1", 4e9)):  # a worker started again long after
        (tmp_path / "ready" / name).touch()
        os.utime(tmp_path / "ready" / name, (arrived, arrived))
    gate.wait(0.05)
    assert 1000 < gate.opened_at() < 4e9


def test_a_placeholder_answers_for_a_package_that_is_missing() -> None:
    code = (
        "from benchmarks.peers import placeholders\n"
        "assert placeholders.install(['no_such_package', 'json']) == ['no_such_package']\n"
        "assert placeholders.install(['no_such_package']) == ['no_such_package']\n"
        "from no_such_package.deep import decorate\n"
        "decorate(str)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_peers_own_folders_come_before_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_NEMO_PATH", "/nemo")
    monkeypatch.setenv("BENCH_RAY_PATH", "/ray")
    monkeypatch.setenv("PYTHONPATH", "/all")
    assert side_by_side._environment(PEERS[RAY]) == {"PYTHONPATH": "/nemo:/ray:/all"}
    assert side_by_side._environment(PEERS[NEMO]) == {"PYTHONPATH": "/nemo:/all"}
    assert side_by_side._environment(PEERS[OURS]) == {}


def test_rows_and_skips_of_all_peers_are_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        "num_images": 40, "seconds": 2.0, "settings": {}, "writes": "nothing", "versions": {},
        "scores": {"1": 5.5, "2": 4.0}, "kept_tars": (), "detail": {"gate": "opened"},
    }  # fmt: skip

    def outcome(job: Job, title: str, bound_s: float) -> dict[str, object] | str:
        return dict(found) if title == OURS else f"no {title} here"

    tar = write(tmp_path / "a.tar", {"1.jpg": b"", "2.png": b"", "3.gif": b"", "3.txt": b""})
    monkeypatch.setattr(side_by_side, "make_job", lambda settings: a_job(tmp_path, tars=(tar,)))
    monkeypatch.setattr(side_by_side, "reference_scores", lambda job, count: {"1": 5.0, "2": 4.0})
    monkeypatch.setattr(side_by_side, "_in_own_process", outcome)
    record = Record("peers", tmp_path, torch.device("cpu"), {})
    measure_peers(record, Settings(device="cpu", results=tmp_path))
    result = read_result(record.path)
    (row,) = result.rows
    assert (row.name, row.median) == ("dali_aesthetic", 20.0)
    assert row.detail["score_error_mean"] == 0.25
    assert row.detail["gate"] == "opened"
    assert row.detail["left_out"] == {"gif": 1}
    assert result.content["images"] == "webmix"
    assert {one["name"] for one in result.skipped} == set(PEERS) - {"dali_aesthetic"}
    assert all(one["reason"].startswith("no ") for one in result.skipped)


def test_score_errors_are_over_what_both_have() -> None:
    assert score_error({"a": 1.0, "b": 2.5}, {"a": 1.0, "b": 2.0, "c": 9.0}) == {
        "score_error_mean": 0.25,
        "score_error_p99": pytest.approx(0.495),
        "scores_compared": 2,
    }
    assert score_error({}, {"a": 1.0}) == {}


def test_kept_images_are_compared_byte_for_byte(tmp_path: Path) -> None:
    whole = {
        f"{i:08d}.{suffix}": b"%d %s" % (i, suffix.encode())
        for i in range(3)
        for suffix in ("jpg", "txt", "json")
    }
    source = write(tmp_path / "source.tar", whole)
    same = write(tmp_path / "same.tar", {name: data for name, data in whole.items() if name[7] == "1"})
    other = write(
        tmp_path / "other.tar", {"img_1.jpg": whole["00000001.jpg"], "00000002.jpg": b"encoded again"}
    )
    assert kept_fidelity([same], source) == {
        "kept_images_compared": 1, "kept_images_with_other_bytes": 0, "kept_images_renamed": 0,
        "members_lost": 0,
    }  # fmt: skip
    assert kept_fidelity([other], source) == {
        "kept_images_compared": 2, "kept_images_with_other_bytes": 1, "kept_images_renamed": 1,
        "members_lost": 4,
    }  # fmt: skip


def test_kept_images_of_a_peer_that_reads_one_format_are_matched_by_position_in_it(tmp_path: Path) -> None:
    source = write(tmp_path / "source.tar", {"0.png": b"0", "1.jpg": b"1", "2.webp": b"2", "3.jpg": b"3"})
    kept = write(tmp_path / "kept.tar", {"a_000001.jpg": b"3", "2.webp": b"2", "a_000002.jpg": b"none"})
    assert kept_fidelity([kept], source) == {
        "kept_images_compared": 3, "kept_images_with_other_bytes": 1, "kept_images_renamed": 2,
        "members_lost": 0,
    }  # fmt: skip


def test_a_peers_clip_gets_every_tensor_of_ours() -> None:
    with torch.device("meta"):
        state = VisionTower(SMALL).state_dict()
    renamed = hf_state(state)
    assert len(renamed) == len(state) + 2 * 2 * SMALL.layers  # qkv, weight and bias, in three
    assert all(name.startswith(("vision_model.", "visual_projection")) for name in renamed)
