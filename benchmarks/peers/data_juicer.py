"""data-juicer's `image_aesthetics_filter`, from its released wheel, sample by sample in one process.

Its filter encodes one sample at a time, so a batch is one image whatever else is set. In its favour: the
image's bytes are handed to it in memory, it has no dataset to write, and neither its process pool nor the
samples' way through Arrow is paid for. Its weights are ours, put into the Hugging Face CLIP that it would
load (the wheel that wraps that one, simple-aesthetics-predictor, is then not needed).
"""

from __future__ import annotations

import importlib.util
import tarfile
import time
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.hf_clip import hf_clip
from benchmarks.peers.job import Job, PeerResult, Unavailable, versions


def run(job: Job) -> PeerResult:
    """Raises Unavailable where the wheel, or one that it imports, is missing."""
    if importlib.util.find_spec("data_juicer") is None:
        raise Unavailable(
            "py-data-juicer is not installed; name a folder that has it in BENCH_DATA_JUICER_PATH"
        )
    try:
        score = _filter(job)
    except ImportError as error:
        raise Unavailable(f"py-data-juicer lacks {error.name or error}") from error
    tars = job.few_tars()
    for image in list(_images(tars[0]).values())[:8]:
        score(image)
    scores: dict[str, float] = {}
    start, count = time.perf_counter(), 0
    for tar in tars:
        for key, image in _images(tar).items():
            scores[key] = score(image)
            count += 1
    return PeerResult(
        num_images=count,
        seconds=time.perf_counter() - start,
        scores=scores,
        settings={"batch_size": 1, "precision": "fp32", "processes": 1},
        writes="nothing; a verdict a sample, in memory",
        versions=versions("py-data-juicer", "transformers", "torch"),
    )


def _filter(job: Job) -> Any:
    """Its filter as a function of encoded bytes; the score it gives, on the head's own scale."""
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
    """Answers as the model that its filter loads: pixels to logits."""

    def __init__(self, job: Job, clip: Any) -> None:
        self.device, self._clip, self._head = torch.device(job.device), clip, job.head_layer()

    def __call__(self, pixel_values: Tensor) -> SimpleNamespace:
        embeddings_ND = self._clip.get_image_features(pixel_values=pixel_values)
        return SimpleNamespace(logits=self._head(F.normalize(embeddings_ND, dim=-1)))


def _images(tar: str) -> dict[str, bytes]:
    with tarfile.open(tar) as opened:
        found = (
            (member.name, opened.extractfile(member)) for member in opened if member.name.endswith(".jpg")
        )
        return {name.partition(".")[0]: content.read() for name, content in found if content is not None}
