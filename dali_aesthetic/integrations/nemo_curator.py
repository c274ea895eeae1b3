"""Stages for NeMo Curator.

`score_threshold` of both stages is on the head's own scale, mostly 1.5 to 7.5, as in NeMo Curator's
`ImageAestheticFilterStage`. The default of 0.5 there keeps practically every image; LAION's "5+", about a
quarter of LAION-2B-en, is 5.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dali_aesthetic.config import Config, DecodeConfig, GuardConfig, ModelConfig
from dali_aesthetic.launch.work import work_shards
from dali_aesthetic.launch.worker import build_worker, run_record
from dali_aesthetic.layout import read_stats, shard_file, shard_name
from dali_aesthetic.score.head import HeadBank
from dali_aesthetic.score.weights import download, load_head
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.stats import RunStats
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.types import Shard
from dali_aesthetic.write.output import open_output

try:
    from loguru import logger
    from nemo_curator.stages.base import ProcessingStage
    from nemo_curator.stages.image.filters.base import BaseFilterStage
    from nemo_curator.stages.resources import Resources
    from nemo_curator.tasks import FileGroupTask, ImageBatch
except ImportError as error:
    raise ImportError(
        f"NeMo Curator's stages can't be imported ({error}); in the clone, pip install '.[nemo]'"
    ) from error

_ENCODER, _EMBED_DIM = "ViT-L-14", 768
_THEIR_HEAD = "ttj/sac-logos-ava1-l14-linearMSE/model.safetensors"
"""The path of NeMo Curator's head below its `model_dir`."""


@dataclass
class AestheticShardStage(ProcessingStage):  # type: ignore[misc]
    """Tars to tars with the samples at or above `score_threshold` (raw): reads, decodes, embeds, filters and
    writes in one stage, in place of four.

    Kept samples are copied byte for byte; `output_dir` is the output of `dali-aesthetic run`, with a row for
    every sample. Shards that are committed there are skipped. Shards are named by their path below
    `input_dir`; where that is not given, by their file name alone, which then must be unique. The encoded
    images in flight take up to `memory_budget_gb` GiB in each worker (None: a quarter of the host's memory,
    at most 16).
    """

    output_dir: str
    input_dir: str = ""
    model_dir: str | None = None
    score_threshold: float = 5.0
    model_inference_batch_size: int | None = None
    num_gpus_per_worker: float = 1.0
    verbose: bool = False
    encoder: str = _ENCODER
    weights: str = "openai"
    head: str = "laion-v2"
    memory_budget_gb: float | None = None
    name: str = "aesthetic_shards"

    def __post_init__(self) -> None:
        _warn_of_scale(self.score_threshold)
        on_gpu = torch.cuda.is_available()
        self.resources = Resources(gpus=self.num_gpus_per_worker) if on_gpu else Resources()

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], []

    def setup_on_node(self, node_info: Any = None, worker_metadata: Any = None) -> None:
        """Fetches the weights once a node."""
        download(self.encoder, self.weights, [self.head], _path(self.model_dir))

    def setup(self, worker_metadata: Any = None) -> None:
        """Loads the model and builds the decoder."""
        self._worker = build_worker(self._config())
        if self.verbose:
            logger.info(f"{self.name}: {self.encoder} and {self.head} on {self._worker.device}")

    def teardown(self) -> None:
        self._worker.decoder.close()

    def process(self, task: FileGroupTask) -> FileGroupTask | None:
        """The task's kept tars, those without a kept sample left out; None where none is left.

        Raises RuntimeError naming the shards that can't be read; the others of the task are committed.
        """
        worker, config = self._worker, self._config()
        shards = [self._shard(index, path) for index, path in enumerate(task.data)]
        todo = open_output(self.output_dir, run_record(config, worker), shards)
        stats = RunStats()
        for report in work_shards(config, worker, todo, stats):
            if self.verbose:
                logger.info(f"{self.name}: {report.name}: {report.num_kept} of {report.num_samples} kept")
        if stats.failed:
            listed = "; ".join(f"{report.source}: {report.error}" for report in stats.failed)
            raise RuntimeError(f"{len(stats.failed)} of {len(shards)} shards failed: {listed}")
        output = Path(self.output_dir)
        kept = [str(output / shard_file(shard.name)) for shard in shards if self._num_kept(shard)]
        if not kept:
            return None
        return FileGroupTask(
            dataset_name=task.dataset_name,
            data=kept,
            reader_config=task.reader_config,
            _metadata=task._metadata,
            _stage_perf=task._stage_perf,
        )

    def _config(self) -> Config:
        return Config(
            input=(self.input_dir or "tasks of NeMo Curator",),
            output=self.output_dir,
            threshold=Threshold(raw=self.score_threshold),
            model=ModelConfig(
                encoder=self.encoder,
                weights=self.weights,
                heads=(self.head,),
                model_dir=_path(self.model_dir),
            ),
            decode=DecodeConfig(batch_size=self.model_inference_batch_size),
            guard=GuardConfig(memory_budget_gb=self.memory_budget_gb),
        )

    def _shard(self, index: int, path: str) -> Shard:
        (found,) = plan_shards(path)
        name = found.name
        if self.input_dir:
            below = path.removeprefix(self.input_dir.rstrip("/") + "/")
            if below == path:
                raise ValueError(f"{path} does not lie below input_dir {self.input_dir}")
            name = shard_name(below.removesuffix(".tar"))
        return Shard(index=index, name=name, kind="tar", source=path)

    def _num_kept(self, shard: Shard) -> int:
        """From the committed report. Raises ValueError where another input had the shard's name before."""
        report = read_stats(self.output_dir, shard.name)
        if report["source"] != shard.source:
            raise ValueError(
                f"{shard.source} and {report['source']} would both be {shard.name} in {self.output_dir}; "
                "give the folder that holds both as input_dir"
            )
        return int(report["num_kept"])


@dataclass
class ImageAestheticFilterStage(BaseFilterStage):  # type: ignore[misc]
    """NeMo Curator's stage of this name over embeddings, with its parameters and defaults.

    Finds the head in NeMo Curator's `model_dir` too. Embeddings are normalised, which theirs already are.
    """

    name: str = "image_aesthetic_filter"
    head: str = "laion-v2"

    def __post_init__(self) -> None:
        super().__post_init__()
        _warn_of_scale(self.score_threshold)

    def setup_on_node(self, node_info: Any = None, worker_metadata: Any = None) -> None:
        """Fetches the head once a node."""
        if self._head() == "laion-v2":
            load_head(self.head, _ENCODER, _EMBED_DIM, _path(self.model_dir))

    def setup(self, worker_metadata: Any = None) -> None:
        loaded, _ = load_head(self._head(), _ENCODER, _EMBED_DIM, _path(self.model_dir))
        self._bank = HeadBank([loaded], _EMBED_DIM)

    def process(self, task: ImageBatch) -> ImageBatch:
        """Sets every image's `aesthetic_score` and leaves out those below the threshold.

        Raises ValueError where an image has no embedding.
        """
        for images in self.yield_next_batch(task):
            if any(image.embedding is None for image in images):
                raise ValueError(f"{self.name}: an image has no embedding; put ImageEmbeddingStage before it")
            embeddings_ND = torch.from_numpy(np.stack([image.embedding for image in images]))
            with torch.inference_mode():
                scores_N = self._bank(embeddings_ND)[:, 0].tolist()
            for image, score in zip(images, scores_N, strict=True):
                image.aesthetic_score = score
        kept = [image for image in task.data if image.aesthetic_score >= self.score_threshold]
        if self.verbose:
            logger.info(f"{self.name}: {len(kept)} of {len(task.data)} images kept")
        return ImageBatch(
            data=kept,
            dataset_name=task.dataset_name,
            _metadata=task._metadata,
            _stage_perf=task._stage_perf,
        )

    def _head(self) -> str:
        theirs = Path(self.model_dir or "") / _THEIR_HEAD
        return str(theirs) if self.head == "laion-v2" and self.model_dir and theirs.is_file() else self.head


def _path(model_dir: str | None) -> Path | None:
    return Path(model_dir) if model_dir else None


def _warn_of_scale(score_threshold: float) -> None:
    if 0 < score_threshold <= 1:
        logger.warning(
            f"score_threshold {score_threshold} is on the raw scale (mostly 1.5 to 7.5) and keeps nearly "
            f"every image; did you mean {10 * score_threshold:g}?"
        )
