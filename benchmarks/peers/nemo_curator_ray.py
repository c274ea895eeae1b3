"""NeMo Curator's image stages as its own pipeline runs them: `Pipeline.run` with its Ray Data executor.

In its favour: workers of fixed number, so that nothing waits for a pool to grow; as many embedders as the
cores and the GPU's memory allow, as Python prepares their images; and all that hf_clip.py gives. The time
counts from when the last model is loaded and warmed up to the last file written: neither Ray's start nor its
end, nor that of its workers, is in it. Its other executor, Cosmos-Xenna, adds workers every three minutes,
longer than this takes.

Memory. Every embedder is a process with a CUDA context, the weights and an allocator of its own, which keeps
what it once had. The images of a batch are prepared one after another, so a batch larger than its default of
32 gains little while memory grows with it; here it is half of the 100 that its reader hands over, and the
allocator's segments may grow, so that sizes that change leave no gaps. ViT-L/14 then comes to an estimated
3.3 GiB (`embedder_gib`). A sixth of what is free stays so. What a GPU refuses nevertheless is for fewer.py:
half the embedders get a second try.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import placeholders
from benchmarks.peers.fewer import with_fewer
from benchmarks.peers.gate import Gate
from benchmarks.peers.hf_clip import hf_precision
from benchmarks.peers.job import Job, PeerResult, Unavailable, versions
from benchmarks.peers.nemo_curator import require_curator
from dali_aesthetic.score.spec import TowerSpec

MODEL_BATCH = 50
"""Half of what its reader hands over at a time, in two equal parts."""
_GIB = 2**30
_SPARE = 1 / 6
"""The share of the free memory that nobody is to count on."""
_READER_GIB = 6.0
"""A CUDA context, the decoder's state for each thread, and pools that grow to some decoded batches of 100."""
_SCORER_GIB = 1.0
"""A CUDA context; the head is one layer."""
_CONTEXT_GIB = 1.0
"""A CUDA context, the kernels loaded and cuBLAS's workspaces."""


@dataclass(frozen=True, slots=True)
class Workers:
    """How many of each stage. Ray is told of as many CPUs as there are workers, whatever the cores."""

    readers: int
    embedders: int
    writers: int
    scorers: int = 1

    @classmethod
    def on(cls, cores: int, free_gib: float = math.inf, each_gib: float = 1.0) -> Workers:
        """`free_gib`: the GPU's memory, if there is one; `each_gib`: an embedder's share of it."""
        helpers = max(1, cores // 8)
        left_gib = (1 - _SPARE) * free_gib - helpers * _READER_GIB - _SCORER_GIB
        embedders = max(1, min(cores - 2 * helpers, left_gib // each_gib))
        return cls(readers=helpers, embedders=int(embedders), writers=helpers)

    @property
    def num_cpus(self) -> int:
        return self.readers + self.embedders + self.writers + self.scorers


def run(job: Job) -> PeerResult:
    """Raises Unavailable where the wheel, Ray, or one that either imports, is missing."""
    require_curator(job)
    if importlib.util.find_spec("ray") is None:
        raise Unavailable("ray is not installed; name a folder that has it in BENCH_RAY_PATH")
    replaced = placeholders.install()
    free_gib = torch.cuda.mem_get_info()[0] / _GIB if job.device.startswith("cuda") else math.inf
    workers = Workers.on(job.num_workers, free_gib, embedder_gib(job.spec, MODEL_BATCH))
    try:
        return with_fewer(
            lambda embedders: _measure(job, replace(workers, embedders=embedders), replaced),
            workers.embedders,
        )
    except ImportError as error:
        raise Unavailable(f"nemo-curator with Ray lacks {error.name or error}") from error


def embedder_gib(spec: TowerSpec, batch: int) -> float:
    """The GPU memory of one embedder in float32, in GiB; what its allocator keeps is in it.

    Of activations the largest are the MLP's: its input, QuickGELU's two intermediate results and its output
    are there at once, beside others that come to one more; a sixth for what doesn't fit where it was freed.
    """
    weights = 12 * spec.layers * spec.width**2
    tokens = (spec.image_size // spec.patch_size) ** 2 + 1
    activations = 6 * batch * tokens * spec.mlp_width
    return _CONTEXT_GIB + 4 * (weights + activations) / _GIB


def _measure(job: Job, workers: Workers, replaced: Sequence[str]) -> PeerResult:
    output = Path(job.output) / "nemo-ray"
    shutil.rmtree(output, ignore_errors=True)
    gate = Gate(str(output / "ready"), workers.embedders)
    tars = job.few_tars()
    _run_pipeline(_stages(job, output, workers, gate), tars, workers)
    from benchmarks.peers.nemo_stages import noted_scores

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
    embedder, scorer = filter_stages(job, output / "notes", MODEL_BATCH)
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
