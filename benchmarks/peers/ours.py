"""This package by the same rules as the others, and in fp8; it also writes scores and kept samples.

Its time counts from the first read to the last commit of a pass over all tars, after a warm-up over as many
tars as a DataLoader gets.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.bench import Bench, calibrated, gate_detail, run_once
from benchmarks.peers.job import Job, PeerResult, Unavailable, versions
from dali_aesthetic.config import Config, ConfigError
from dali_aesthetic.launch.worker import build_worker
from dali_aesthetic.threshold import Threshold


def run(job: Job) -> PeerResult:
    """A warm-up, then the pass that counts. Raises ConfigError if fp8 is asked for and can't run."""
    config = calibrated(_config(job))
    worker = build_worker(config)
    bench = Bench(config=config, worker=worker, folder=Path(job.output))
    run_once(bench, job.warm_tars(), Threshold(raw=job.cut))
    stats = run_once(bench, job.tars, Threshold(raw=job.cut))
    worker.decoder.close()
    folder = bench.folder / "output"
    first = Path(job.tars[0]).stem
    table = pq.read_table(folder / "scores" / f"{first}.parquet", columns=["key", "aesthetic_score"])
    backend = worker.scorer.backend
    return PeerResult(
        num_images=stats.num_scored,
        seconds=stats.seconds,
        scores=dict(zip(table["key"].to_pylist(), table["aesthetic_score"].to_pylist(), strict=True)),
        settings={
            "backend": backend.name,
            "precision": backend.precision,
            "batch_size": worker.scorer.batch_size,
        },
        writes="scores of all, kept samples byte for byte",
        versions=versions("dali-aesthetic", "torch"),
        kept_tars=(str(folder / "shards" / f"{first}.tar"),),
        detail=gate_detail(config),
    )


def run_fp8(job: Job) -> PeerResult:
    """The same in fp8 with its gate opened (see `bench.OPEN`).

    Raises Unavailable without a GPU that has fp8, and if the options ask for another encoder.
    """
    chosen = (job.backend, job.our_precision)
    if chosen != ("auto", "auto"):
        raise Unavailable(f"backend {chosen[0]} and precision {chosen[1]} are asked for")
    try:
        return run(replace(job, our_precision="fp8"))
    except ConfigError as reason:
        raise Unavailable(str(reason)) from reason


def _config(job: Job) -> Config:
    return Config.build(
        {
            "input": job.tars,
            "output": job.output,
            "device": "cuda" if job.device.startswith("cuda") else "cpu",
            "model": {
                "encoder": job.encoder,
                "weights": job.weights,
                "heads": (job.head,),
                "backend": job.backend,
                "precision": job.our_precision,
            },
            "decode": {"batch_size": job.batch_size or None},
        }
    )
