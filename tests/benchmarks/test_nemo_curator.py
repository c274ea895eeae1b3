"""NeMo Curator as a peer: reasons where it can't run, and its workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers.job import Job, Unavailable
from dali_aesthetic.score.spec import spec_of
from tests.benchmarks.test_peers import a_job


def test_without_its_package_or_a_gpu_nemo_curator_says_so(tmp_path: Path) -> None:
    from benchmarks.peers.nemo_curator import run

    with pytest.raises(Unavailable, match="nemo-curator"):
        run(a_job(tmp_path))


def test_without_ray_nemo_curators_pipeline_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.peers import nemo_curator

    monkeypatch.setattr(nemo_curator, "require_curator", lambda job: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="BENCH_RAY_PATH"):
        nemo_curator.run_with_ray(a_job(tmp_path))


@pytest.mark.parametrize(("cores", "embedders"), [(1, 1), (2, 1), (16, 12), (64, 48)])
def test_nemo_curators_workers_fill_the_cores(cores: int, embedders: int) -> None:
    from benchmarks.peers.nemo_curator import Workers

    workers = Workers.on(cores)
    assert workers.embedders == embedders
    assert workers.num_cpus <= cores + 3  # the scorer has next to nothing to do


@pytest.mark.parametrize(
    ("free_gib", "cores", "embedders"), [(77.0, 16, 12), (38.0, 16, 5), (22.0, 16, 1), (8.0, 2, 1)]
)
def test_nemo_curators_embedders_leave_room_on_the_gpu(free_gib: float, cores: int, embedders: int) -> None:
    from benchmarks.peers import nemo_curator as nemo

    each_gib = nemo.embedder_gib(spec_of("ViT-L-14-quickgelu"), nemo.RAY_MODEL_BATCH)
    assert each_gib == pytest.approx(3.3, abs=0.01)
    workers = nemo.Workers.on(cores, free_gib, each_gib)
    assert workers.embedders == embedders
    taken = embedders * each_gib + workers.readers * nemo._READER_GIB + nemo._SCORER_GIB
    assert embedders == 1 or taken < free_gib * 5 / 6


@pytest.mark.parametrize(
    ("error", "tried"),
    [("MemoryError: CUDA allocation failed", [8, 4]), ("no such file", [8])],
)
def test_nemo_curator_gets_a_second_try_if_memory_runs_out(
    error: str, tried: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.peers import nemo_curator as nemo

    seen = []

    def failing(job: Job, workers: nemo.Workers, replaced: object) -> None:
        seen.append(workers.embedders)
        raise RuntimeError(error)

    monkeypatch.setattr(nemo, "require_curator", lambda job: None)
    monkeypatch.setattr(nemo.placeholders, "install", list)
    monkeypatch.setattr(nemo, "_measure_with_ray", failing)
    with pytest.raises(RuntimeError, match=error):
        nemo.run_with_ray(a_job(tmp_path, num_workers=10))
    assert seen == tried
