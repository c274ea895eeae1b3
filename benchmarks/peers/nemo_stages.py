"""NeMo Curator's image stages with our weights: read, embed, filter, write.

Our weights are put into the Hugging Face CLIP that its stage would load; the head is one layer. A module of
its own, as it can be imported only after `placeholders.install()`, and Ray's workers import the classes by
name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from nemo_curator.models.aesthetics import AestheticScorer
from nemo_curator.models.clip import CLIPImageEmbeddings
from nemo_curator.stages.image.embedders.clip_embedder import ImageEmbeddingStage
from nemo_curator.stages.image.filters.aesthetic_filter import ImageAestheticFilterStage
from nemo_curator.stages.image.io.image_reader import ImageReaderStage
from nemo_curator.tasks import ImageBatch

from benchmarks.peers.hf_clip import hf_clip
from benchmarks.peers.job import Gate, Job, images_of, members

MODEL_BATCH = 256
"""Eight times its default; a batch holds 100 images, as many as its reader hands over at a time."""
READER_BATCH = 100
"""Its reader's default: the images that it decodes and hands over at a time."""
READS = ("jpg",)
"""Members that its reader takes; its image ids are positions among them."""
_WAIT_S = 300


class Reader(ImageReaderStage):  # type: ignore[misc]
    """Warms up and waits for the gate, if any; asks DALI for a GPU only if there is one."""

    gate: Gate | None = None

    def process(self, task: Any) -> list[ImageBatch]:
        # The annotation matters: the pipeline spreads the batches of stages that return a list.
        if self.gate is not None and not self.gate.is_open():
            super().process(task)  # warms up while it would wait
            self.gate.wait(_WAIT_S)
        batches: list[ImageBatch] = super().process(task)
        return batches

    def _create_dali_pipeline(self, tar_paths: list[str]) -> Any:
        if torch.cuda.is_available():
            return super()._create_dali_pipeline(tar_paths)
        with patch("nvidia.dali.pipeline_def", _without_gpu):
            return super()._create_dali_pipeline(tar_paths)


def _without_gpu(**options: Any) -> Callable[..., Any]:
    from nvidia.dali.pipeline import pipeline_def

    decorator: Callable[..., Any] = pipeline_def(**{**options, "device_id": None})
    return decorator


class Embedder(ImageEmbeddingStage):  # type: ignore[misc]
    """With our image tower. With a gate it scores a batch before it arrives."""

    job: Any = None
    gate: Gate | None = None

    def setup_on_node(self, node_info: Any = None, worker_metadata: Any = None) -> None:
        """Nothing to download."""

    def setup(self, _worker_metadata: Any = None) -> None:
        self.model = CLIPImageEmbeddings("")
        self.model.clip, self.model.processor = hf_clip(self.job.spec, self.job.weights, self.model.device)
        if self.gate is not None:
            # Of several sizes, as its reader's are: the model handles equal sizes differently.
            full = min(READER_BATCH, self.model_inference_batch_size)
            count, size = full if torch.cuda.is_available() else 2, self.job.spec.image_size
            self.model([np.zeros((size + i % 2, size, 3), np.uint8) for i in range(count)])
            self.gate.arrive()


class Scorer(ImageAestheticFilterStage):  # type: ignore[misc]
    """With our head; writes the scores of all images, kept or not, to a file in `notes`."""

    job: Any = None
    notes: str = ""

    def setup_on_node(self, _node_info: Any = None, _worker_metadata: Any = None) -> None:
        """Nothing to download."""

    def setup(self, _worker_metadata: Any = None) -> None:
        self.model = AestheticScorer("")
        self.model.mlp = self.job.head_layer()

    def process(self, task: Any) -> Any:
        images = list(task.data)
        kept = super().process(task)
        with open(Path(self.notes) / f"{os.getpid()}.txt", "a") as file:
            file.writelines(f"{image.image_id} {image.aesthetic_score!r}\n" for image in images)
        return kept


def noted_scores(notes: Path, tar: str) -> tuple[dict[str, float], int]:
    """The scores of a tar's images by key, and the number of scores of all tars."""
    lines = [line.split() for path in sorted(notes.glob("*.txt")) for line in path.read_text().splitlines()]
    found = {name: float(score) for name, score in lines}
    own = {name: score for name, score in found.items() if name.rpartition("_")[0] == Path(tar).stem}
    keys = list(images_of(members(tar), READS))
    return {keys[int(name.rpartition("_")[2])]: score for name, score in own.items()}, len(found)


def filter_stages(job: Job, notes: Path, model_batch: int = MODEL_BATCH) -> tuple[Embedder, Scorer]:
    """The two stages that have a model."""
    embedder = Embedder(model_dir="", model_inference_batch_size=model_batch)
    scorer = Scorer(model_dir="", model_inference_batch_size=model_batch, score_threshold=job.cut)
    embedder.job = scorer.job = job
    notes.mkdir(parents=True, exist_ok=True)
    scorer.notes = str(notes)
    return embedder, scorer
