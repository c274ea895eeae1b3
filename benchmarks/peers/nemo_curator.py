"""NeMo Curator's own image stages, from its released wheel, one after another in one process.

In its favour: no Ray in between, CPU threads as there are cores, its model batch raised from 32, TF32
products and the faster image processor (see hf_clip.py). Ray and Cosmos-Xenna, which it imports to start
workers that aren't started here, are replaced by placeholders where they are not installed.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import placeholders
from benchmarks.peers.hf_clip import hf_precision
from benchmarks.peers.job import Job, PeerResult, Unavailable, versions


def run(job: Job) -> PeerResult:
    """Raises Unavailable where the wheel, or one that its image stages import, is missing."""
    require_curator(job)
    replaced = placeholders.install()
    output = Path(job.output) / "nemo"
    shutil.rmtree(output, ignore_errors=True)
    try:
        stages, task_type = _stages(job, output)
        from benchmarks.peers.nemo_stages import MODEL_BATCH, noted_scores
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
            "model_batch": MODEL_BATCH,
            "precision": hf_precision(job.device),
            "threads": job.num_workers,
            "placeholders": replaced,
        },
        writes="kept images, encoded again as JPEG",
        versions=versions("nemo-curator", "transformers", "torch"),
        kept_tars=tuple(str(path) for path in sorted(output.glob("*.tar"))),
    )


def require_curator(job: Job) -> None:
    """Raises Unavailable where its wheel is missing, or where it would not use the job's device."""
    if importlib.util.find_spec("nemo_curator") is None:
        raise Unavailable("nemo-curator is not installed; benchmarks/peers/bundle.sh makes a light bundle")
    if not job.device.startswith("cuda") and torch.cuda.is_available():
        raise Unavailable("nemo-curator uses a GPU wherever there is one")


def _stages(job: Job, output: Path) -> tuple[list[Any], Any]:
    """The four stages, set up as its own pipeline does, and the type of the first one's input."""
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
    """One tar through all stages."""
    reader, embedder, scorer, writer = stages
    for batch in reader.process(task_type(dataset_name="bench", data=[tar])):
        kept = scorer.process(embedder.process(batch))
        if kept.data:
            writer.process(kept)
