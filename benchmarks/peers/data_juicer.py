"""data-juicer's `image_aesthetics_filter`, from its released wheel, in as many processes as cores, or half.

Its filter encodes one sample at a time, so that a batch is one image whatever is set; more speed comes from
more processes on the same GPU. In its favour: the images' bytes are in each process's memory, no dataset is
written, samples don't go through Arrow, and the TF32 products and faster processor of hf_clip.py. Our weights
are put into the Hugging Face CLIP that it would load; the wheel that wraps it, simple-aesthetics-predictor,
isn't needed then.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import placeholders
from benchmarks.peers.hf_clip import hf_clip, hf_precision
from benchmarks.peers.job import (
    Gate,
    Job,
    PeerResult,
    Unavailable,
    images_of,
    members,
    versions,
    with_fewer,
)

_WAIT_S = 300


def run(job: Job) -> PeerResult:
    """Raises Unavailable if the wheel or a dependency is missing."""
    if importlib.util.find_spec("data_juicer") is None:
        raise Unavailable(
            "py-data-juicer is not installed; name a folder that has it in BENCH_DATA_JUICER_PATH"
        )
    try:
        replaced = _import()
    except ImportError as error:
        raise Unavailable(f"py-data-juicer lacks {error.name or error}") from error
    return with_fewer(
        lambda processes: _measure(replace(job, num_workers=processes), replaced), job.num_workers
    )


def _measure(job: Job, replaced: Sequence[str]) -> PeerResult:
    scores, count, seconds = score_in_processes(job, data_juicer_filter)
    return PeerResult(
        num_images=count,
        seconds=seconds,
        scores=scores,
        settings={
            "batch_size": 1,
            "precision": hf_precision(job.device),
            "processes": job.num_workers,
            "placeholders": replaced,
        },
        writes="nothing; a verdict a sample, in memory",
        versions=versions("py-data-juicer", "transformers", "torch"),
    )


MakeScorer = Callable[[Job], Callable[[bytes], float]]
"""Loads a model in the calling process; the function that it returns scores one encoded image."""


def score_in_processes(job: Job, make_scorer: MakeScorer) -> tuple[dict[str, float], int, float]:
    """Score all images one by one in `num_workers` processes: scores by key, number of images, seconds.

    Images that Pillow can't read are left out.
    """
    folder = Path(job.output) / "ready"
    shutil.rmtree(folder, ignore_errors=True)
    gate = Gate(str(folder), job.num_workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(job.num_workers, mp_context=context) as processes:
        shares = [
            processes.submit(_score_share, job, make_scorer, gate, rank) for rank in range(job.num_workers)
        ]
        gate.wait(_WAIT_S)
        start = time.perf_counter()
        found = [share.result() for share in shares]
        seconds = time.perf_counter() - start
    scores = {key: score for part in found for key, score in part}
    return scores, sum(map(len, found)), seconds


def _score_share(job: Job, make_scorer: MakeScorer, gate: Gate, rank: int) -> list[tuple[str, float]]:
    """Keys and scores of this process's share of the images, in the tars' order."""
    torch.set_num_threads(1)
    images = [item for tar in job.few_tars() for item in _images(tar)][rank :: job.num_workers]
    try:
        score = make_scorer(job)
        for _, image in islice(images, 8):
            _score_or_skip(score, image)
    finally:
        gate.arrive()  # also after a failure: the others must not wait for it
    gate.wait(_WAIT_S)
    scores = ((key, _score_or_skip(score, image)) for key, image in images)
    return [(key, found) for key, found in scores if found is not None]


def _score_or_skip(score: Callable[[bytes], float], image: bytes) -> float | None:
    try:
        return score(image)
    except OSError:  # Pillow's for what it can't read; its own runs skip such a sample
        return None


def _import() -> list[str]:
    """Import its operators, with a placeholder for Ray if it is missing; returns the names of placeholders.

    Raises ImportError for other missing packages, which it would install with pip during the import.
    """
    replaced = placeholders.install(["ray"])
    from data_juicer.utils.lazy_loader import LazyLoader

    def refuse(package: str, pip_args: Any = None) -> None:
        raise ImportError(f"no {package}", name=package)

    LazyLoader._install_package = staticmethod(refuse)
    from data_juicer.ops.filter import image_aesthetics_filter  # noqa: F401

    return replaced


def data_juicer_filter(job: Job) -> Callable[[bytes], float]:
    """Its filter as a function from encoded bytes to the score, on the head's scale."""
    _import()
    from data_juicer.ops.filter.image_aesthetics_filter import ImageAestheticsFilter
    from data_juicer.utils import model_utils
    from data_juicer.utils.constant import Fields, StatsKeys

    accelerator = "cuda" if job.device.startswith("cuda") else "cpu"
    operator = ImageAestheticsFilter(
        min_score=job.cut / 10, max_score=1e9, image_bytes_key="bytes", accelerator=accelerator
    )
    clip, processor = hf_clip(job.spec, job.weights, job.device)
    model_utils.MODEL_ZOO[operator.model_key] = (_Predictor(job, clip), processor)

    def score(image: bytes) -> float:
        sample: dict[str, Any] = {operator.image_key: ["0"], "bytes": [image], Fields.stats: {}}
        operator.process_single(operator.compute_stats_single(sample))
        return 10 * float(sample[Fields.stats][StatsKeys.image_aesthetics_scores][0])

    return score


class _Predictor:
    """Stands in for the model that its filter loads: pixels to logits."""

    def __init__(self, job: Job, clip: Any) -> None:
        self.device, self._clip, self._head = torch.device(job.device), clip, job.head_layer()

    def __call__(self, pixel_values: Tensor) -> SimpleNamespace:
        embeddings_ND = self._clip.get_image_features(pixel_values=pixel_values)
        return SimpleNamespace(logits=self._head(F.normalize(embeddings_ND, dim=-1)))


def _images(tar: str) -> list[tuple[str, bytes]]:
    found = members(tar)
    return [(key, found[name]) for key, name in images_of(found).items()]
