"""NeMo Curator's image stages, from its released wheel: in one process, and as its own pipeline runs them.

In favour of both: TF32 products and the faster image processor (see hf_clip.py). Ray and Cosmos-Xenna, which
it imports to start workers, are replaced by placeholders where they aren't installed.

In one process (`run`) the stages follow one another without Ray, with as many CPU threads as cores and a
model batch of 256 in place of 32.

Its pipeline (`run_with_ray`) is `Pipeline.run` with the Ray Data executor. In its favour: a fixed number of
workers, so that nothing waits for a pool to grow, and as many embedders as cores and GPU memory allow, as
Python prepares their images. The time counts from the last loaded and warmed-up model to the last written
file; the start and the end of Ray and of its workers are not in it. The other executor, Cosmos-Xenna, adds
workers every three minutes, which is longer than all of this takes.

Memory: every embedder is a process with a CUDA context, the weights and an allocator, which keeps what it
once had. The images of a batch are prepared one after another, so that a batch over the default of 32 gains
little and takes memory; here it is half of the 100 that the reader hands over. The allocator's segments may
grow, so that changing sizes leave no gaps. ViT-L/14 takes an estimated 3.3 GiB (`embedder_gib`). A sixth of
the free memory is left. If the GPU refuses nevertheless, half the embedders get a second try.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import placeholders
from benchmarks.peers.hf_clip import hf_precision
from benchmarks.peers.job import Gate, Job, PeerResult, Unavailable, versions, with_fewer
from dali_aesthetic.score.spec import TowerSpec

RAY_MODEL_BATCH = 50
"""Half of what the reader hands over at a time."""
_GIB = 2**30
_SPARE = 1 / 6
"""The share of the free memory that is left free."""
_READER_GIB = 6.0
"""A CUDA context, the decoder's state for each thread, and pools that grow to some decoded batches of 100."""
_SCORER_GIB = 1.0
"""A CUDA context; the head is one layer."""
_CONTEXT_GIB = 1.0
"""A CUDA context, the kernels loaded and cuBLAS's workspaces."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The number of workers of each stage. Ray is told that there are as many CPUs, whatever the cores."""

    readers: int
    embedders: int
    writers: int
    scorers: int = 1

    @classmethod
    def on(cls, cores: int, free_gib: float = math.inf, each_gib: float = 1.0) -> Workers:
        """Workers for `cores`, with `free_gib` of GPU memory, if any; an embedder takes `each_gib` of it."""
        helpers = max(1, cores // 8)
        left_gib = (1 - _SPARE) * free_gib - helpers * _READER_GIB - _SCORER_GIB
        embedders = max(1, min(cores - 2 * helpers, left_gib // each_gib))
        return cls(readers=helpers, embedders=int(embedders), writers=helpers)

    @property
    def num_cpus(self) -> int:
        return self.readers + self.embedders + self.writers + self.scorers


def run(job: Job) -> PeerResult:
    """Its stages one after another in this process. Raises Unavailable if it or a dependency is missing."""
    require_curator(job)
    replaced = placeholders.install()
    output = Path(job.output) / "nemo"
    shutil.rmtree(output, ignore_errors=True)
    try:
        stages, task_type = _stages(job, output)
        from benchmarks.peers.nemo_stages import MODEL_BATCH, READS, noted_scores
    except ImportError as error:
        raise Unavailable(f"nemo-curator lacks {error.name or error}") from error
    tars = job.few_tars()
    _process(stages, task_type, tars[0])
    start = time.perf_counter()
    for tar in tars:
        _process(stages, task_type, tar)
    seconds = time.perf_counter() - start
    scores, num_images = noted_scores(output / "notes", tars[0])
    return PeerResult(
        num_images=num_images,
        seconds=seconds,
        scores=scores,
        settings={
            "stages": "read, embed, filter, write",
            "reads": list(READS),
            "model_batch": MODEL_BATCH,
            "precision": hf_precision(job.device),
            "threads": job.num_workers,
            "placeholders": replaced,
        },
        writes="kept images, encoded again as JPEG",
        versions=versions("nemo-curator", "transformers", "torch"),
        kept_tars=tuple(str(path) for path in sorted(output.glob("*.tar"))),
    )


def run_with_ray(job: Job) -> PeerResult:
    """Its pipeline with Ray Data. Raises Unavailable if it, Ray or a dependency is missing."""
    require_curator(job)
    if importlib.util.find_spec("ray") is None:
        raise Unavailable("ray is not installed; name a folder that has it in BENCH_RAY_PATH")
    replaced = placeholders.install()
    free_gib = torch.cuda.mem_get_info()[0] / _GIB if job.device.startswith("cuda") else math.inf
    workers = Workers.on(job.num_workers, free_gib, embedder_gib(job.spec, RAY_MODEL_BATCH))
    try:
        return with_fewer(
            lambda embedders: _measure_with_ray(job, replace(workers, embedders=embedders), replaced),
            workers.embedders,
        )
    except ImportError as error:
        raise Unavailable(f"nemo-curator with Ray lacks {error.name or error}") from error


def embedder_gib(spec: TowerSpec, batch: int) -> float:
    """The GPU memory of an embedder in float32, in GiB, including what its allocator keeps.

    The largest activations are the MLP's: its input, two intermediate results of QuickGELU and its output,
    all at once, beside others that add up to one more; and a sixth for fragmentation.
    """
    weights = 12 * spec.layers * spec.width**2
    tokens = (spec.image_size // spec.patch_size) ** 2 + 1
    activations = 6 * batch * tokens * spec.mlp_width
    return _CONTEXT_GIB + 4 * (weights + activations) / _GIB


def require_curator(job: Job) -> None:
    """Raises Unavailable if the wheel is missing, or if it would not use the job's device."""
    if importlib.util.find_spec("nemo_curator") is None:
        raise Unavailable("nemo-curator is not installed; benchmarks/peers/bundle.sh makes a light bundle")
    if not job.device.startswith("cuda") and torch.cuda.is_available():
        raise Unavailable("nemo-curator uses a GPU wherever there is one")


def _stages(job: Job, output: Path) -> tuple[list[Any], Any]:
    """The four stages, set up as its pipeline does, and the type of the first one's input."""
    from loguru import logger
    from nemo_curator.stages.image.io.image_writer import ImageWriterStage
    from nemo_curator.tasks import FileGroupTask

    from benchmarks.peers.nemo_stages import Reader, filter_stages

    logger.remove()
    embedder, scorer = filter_stages(job, output / "notes")
    embedder.setup()
    scorer.setup()
    reader = Reader(num_threads=job.num_workers, verbose=False)
    writer = ImageWriterStage(output_dir=str(output), images_per_tar=job.per_tar)
    return [reader, embedder, scorer, writer], FileGroupTask


@torch.no_grad()
def _process(stages: Sequence[Any], task_type: Any, tar: str) -> None:
    """Put a tar through all stages."""
    reader, embedder, scorer, writer = stages
    for batch in reader.process(task_type(dataset_name="bench", data=[tar])):
        kept = scorer.process(embedder.process(batch))
        if kept.data:
            writer.process(kept)


def _measure_with_ray(job: Job, workers: Workers, replaced: Sequence[str]) -> PeerResult:
    output = Path(job.output) / "nemo-ray"
    shutil.rmtree(output, ignore_errors=True)
    gate = Gate(str(output / "ready"), workers.embedders)
    tars = job.few_tars()
    _run_pipeline(_ray_stages(job, output, workers, gate), tars, workers)
    from benchmarks.peers.nemo_stages import READS, noted_scores

    scores, num_images = noted_scores(output / "notes", tars[0])
    return PeerResult(
        num_images=num_images,
        seconds=_last_written(output) - gate.opened_at(),
        scores=scores,
        settings={
            "executor": "Ray Data",
            "stages": "read, embed, filter, write",
            "reads": list(READS),
            **asdict(workers),
            "model_batch": RAY_MODEL_BATCH,
            "precision": hf_precision(job.device),
            "placeholders": replaced,
        },
        writes="kept images, encoded again as JPEG",
        versions=versions("nemo-curator", "ray", "transformers", "torch"),
        kept_tars=tuple(str(path) for path in sorted(output.glob("*.tar"))),
    )


def _ray_stages(job: Job, output: Path, workers: Workers, gate: Gate) -> list[Any]:
    """The four stages with their workers and shares of the GPU."""
    from loguru import logger
    from nemo_curator.stages.image.io.image_writer import ImageWriterStage

    from benchmarks.peers.nemo_stages import Reader, filter_stages

    logger.remove()
    reader = Reader(num_threads=max(2, job.num_workers // 4), verbose=False)
    embedder, scorer = filter_stages(job, output / "notes", RAY_MODEL_BATCH)
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
    """A stage with `count` workers that share `gpu` of the GPU."""
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
            runtime_env={
                "worker_process_setup_hook": "benchmarks.peers.placeholders.install",
                "env_vars": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
            },
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
