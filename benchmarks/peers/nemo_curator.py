"""NeMo Curator's own image stages, from its released wheel, one after another in one process.

In its favour: no Ray in between, CPU threads as there are cores, its model batch raised from 32 to 256. Its
weights are ours, put into the Hugging Face CLIP that its stage would load; its head is ours as one layer. Ray
and Cosmos-Xenna, which it imports to start workers that aren't started here, are replaced by placeholders
where they are not installed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch

from benchmarks.peers.hf_clip import hf_clip
from benchmarks.peers.job import Job, PeerResult, Unavailable, position_key, versions

MODEL_BATCH = 256
_PLACEHOLDERS = ("ray", "cosmos_xenna")


def run(job: Job) -> PeerResult:
    """Raises Unavailable where the wheel, or one that its image stages import, is missing."""
    if importlib.util.find_spec("nemo_curator") is None:
        raise Unavailable("nemo-curator is not installed; benchmarks/peers/bundle.sh makes a light bundle")
    _require_gpu(job)
    replaced = _placeholders()
    try:
        stages, task_type = _stages(job)
    except ImportError as error:
        raise Unavailable(f"nemo-curator lacks {error.name or error}") from error
    tars = job.few_tars()
    _process(stages, task_type, tars[:1], [])
    images: list[Any] = []
    start = time.perf_counter()
    for tar in tars:
        _process(stages, task_type, (tar,), images if tar == tars[0] else [])
    seconds = time.perf_counter() - start
    return PeerResult(
        num_images=job.per_tar * len(tars),
        seconds=seconds,
        scores={position_key(index): score for index, score in enumerate(images)},
        settings={
            "stages": "read, embed, filter, write",
            "model_batch": MODEL_BATCH,
            "threads": job.num_workers,
            "placeholders": replaced,
        },
        writes="kept images, encoded again as JPEG",
        versions=versions("nemo-curator", "transformers", "torch"),
        kept_tars=tuple(str(path) for path in _first_output(job)),
    )


def _require_gpu(job: Job) -> None:
    if not job.device.startswith("cuda"):
        raise Unavailable("nemo-curator's reader asks DALI for a GPU even where it decodes on the CPU")


class _Placeholder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives modules of a missing package that answer to every name and do nothing."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] != self._package:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = _answer  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _answer(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    # The one name that is used at import: a limit that is put into the environment as text.
    return 40_000 if name == "API_LIMIT" else MagicMock()


def _placeholders() -> list[str]:
    """Stand-ins for what isn't installed; their names."""
    missing = [name for name in _PLACEHOLDERS if importlib.util.find_spec(name) is None]
    sys.meta_path += [_Placeholder(name) for name in missing]
    return missing


def _stages(job: Job) -> tuple[list[Any], Any]:
    """The four stages, set up as its own pipeline does, and the type of the first one's input."""
    from loguru import logger
    from nemo_curator.models.aesthetics import AestheticScorer
    from nemo_curator.models.clip import CLIPImageEmbeddings
    from nemo_curator.stages.image.embedders.clip_embedder import ImageEmbeddingStage
    from nemo_curator.stages.image.filters.aesthetic_filter import ImageAestheticFilterStage
    from nemo_curator.stages.image.io.image_reader import ImageReaderStage
    from nemo_curator.stages.image.io.image_writer import ImageWriterStage
    from nemo_curator.tasks import FileGroupTask

    logger.remove()
    embedder = ImageEmbeddingStage(model_dir="", model_inference_batch_size=MODEL_BATCH)
    embedder.model = CLIPImageEmbeddings("")
    embedder.model.clip, embedder.model.processor = hf_clip(job.spec, job.weights, embedder.model.device)
    scorer = ImageAestheticFilterStage(
        model_dir="", model_inference_batch_size=MODEL_BATCH, score_threshold=job.cut
    )
    scorer.model = AestheticScorer("")
    scorer.model.mlp = job.head_layer()
    output = Path(job.output) / "nemo"
    reader = ImageReaderStage(num_threads=job.num_workers, verbose=False)
    writer = ImageWriterStage(output_dir=str(output), images_per_tar=job.per_tar)
    return [reader, embedder, scorer, writer], FileGroupTask


@torch.no_grad()
def _process(stages: Sequence[Any], task_type: Any, tars: Sequence[str], scores: list[float]) -> None:
    """One task through all stages; appends the scores of all images, kept or not."""
    reader, embedder, scorer, writer = stages
    for batch in reader.process(task_type(dataset_name="bench", data=list(tars))):
        embedded = embedder.process(batch)
        kept = scorer.process(embedded)
        scores += [image.aesthetic_score for image in embedded.data]
        if kept.data:
            writer.process(kept)


def _first_output(job: Job) -> list[Path]:
    """The tars that hold what was kept of the first input."""
    return sorted((Path(job.output) / "nemo").glob("*.tar"))
