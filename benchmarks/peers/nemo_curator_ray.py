"""NeMo Curator's image stages as its own pipeline runs them: `Pipeline.run` with its Ray Data executor.

In its favour: workers of fixed number, so that nothing waits for a pool to grow; as many embedders as the
cores allow, as Python prepares their images; and all that hf_clip.py gives. The time counts from when the
last model is loaded to the last file written: neither Ray's start nor its end, nor that of its workers, is in
it. Its other executor, Cosmos-Xenna, adds workers every three minutes, longer than this takes.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import placeholders
from benchmarks.peers.gate import Gate
from benchmarks.peers.hf_clip import hf_precision
from benchmarks.peers.job import Job, PeerResult, Unavailable, versions
from benchmarks.peers.nemo_curator import require_curator


@dataclass(frozen=True, slots=True)
class Workers:
    """How many of each stage. Ray is told of as many CPUs as there are workers, whatever the cores."""

    readers: int
    embedders: int
    writers: int
    scorers: int = 1

    @classmethod
    def on(cls, cores: int) -> Workers:
        helpers = max(1, cores // 8)
        return cls(readers=helpers, embedders=max(1, cores - 2 * helpers), writers=helpers)

    @property
    def num_cpus(self) -> int:
        return self.readers + self.embedders + self.writers + self.scorers


def run(job: Job) -> PeerResult:
    """Raises Unavailable where the wheel, Ray, or one that either imports, is missing."""
    require_curator(job)
    if importlib.util.find_spec("ray") is None:
        raise Unavailable("ray is not installed; name a folder that has it in BENCH_RAY_PATH")
    replaced = placeholders.install()
    output = Path(job.output) / "nemo-ray"
    shutil.rmtree(output, ignore_errors=True)
    workers = Workers.on(job.num_workers)
    gate = Gate(str(output / "ready"), workers.embedders)
    tars = job.few_tars()
    try:
        _run_pipeline(_stages(job, output, workers, gate), tars, workers)
        from benchmarks.peers.nemo_stages import MODEL_BATCH, noted_scores
    except ImportError as error:
        raise Unavailable(f"nemo-curator with Ray lacks {error.name or error}") from error
    scores, num_images = noted_scores(output / "notes", tars[0])
    return PeerResult(
        num_images=num_images,
        seconds=_last_written(output) - gate.opened_at(),
        scores=scores,
        settings={
            "executor": "Ray Data",
            "stages": "read, embed, filter, write",
            **asdict(workers),
            "model_batch": MODEL_BATCH,
            "precision": hf_precision(job.device),
            "placeholders": replaced,
        },
        writes="kept images, encoded again as JPEG",
        versions=versions("nemo-curator", "ray", "transformers", "torch"),
        kept_tars=tuple(str(path) for path in sorted(output.glob("*.tar"))),
    )


def _stages(job: Job, output: Path, workers: Workers, gate: Gate) -> list[Any]:
    """The four stages with their workers and shares of the GPU."""
    from loguru import logger
    from nemo_curator.stages.image.io.image_writer import ImageWriterStage

    from benchmarks.peers.nemo_stages import Reader, filter_stages

    logger.remove()
    reader = Reader(num_threads=max(2, job.num_workers // 4), verbose=False)
    embedder, scorer = filter_stages(job, output / "notes")
    reader.gate = embedder.gate = gate
    writer = ImageWriterStage(output_dir=str(output), images_per_tar=job.per_tar)
    on_gpu = job.device.startswith("cuda")
    return [
        _with(reader, workers.readers, 0.2 * on_gpu),
        _with(embedder, workers.embedders, 0.7 * on_gpu),
        _with(scorer, workers.scorers, 0.1 * on_gpu),
        _with(writer, workers.writers, 0.0),
    ]


def _with(stage: Any, count: int, gpu: float) -> Any:
    """A stage of `count` workers that share `gpu` of the GPU."""
    from nemo_curator.stages.resources import Resources

    # Rounded down: shares that add up to more than one GPU would never all be granted.
    share = int(1000 * gpu / count) / 1000
    return stage.with_(num_workers=count, resources=Resources(cpus=1.0, gpus=share))


def _run_pipeline(stages: Sequence[Any], tars: Sequence[str], workers: Workers) -> None:
    import ray
    from nemo_curator.backends.ray_data import RayDataExecutor
    from nemo_curator.pipeline import Pipeline
    from nemo_curator.tasks import FileGroupTask

    tasks = [FileGroupTask(dataset_name="bench", data=[tar]) for tar in tars]
    # A cluster and a folder of its own: Ray would else join one that happens to run here.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=workers.num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"worker_process_setup_hook": "benchmarks.peers.placeholders.install"},
            _temp_dir=folder,
        )
        try:
            Pipeline(name="bench", stages=list(stages)).run(RayDataExecutor(), initial_tasks=tasks)
        finally:
            ray.shutdown()


def _last_written(output: Path) -> float:
    """When the last scores or images were written, seconds since 1970."""
    written = [*output.glob("*.tar"), *output.glob("*.parquet"), *output.glob("notes/*")]
    return max(path.stat().st_mtime for path in written)
