"""DALI's tar reader, the usual resize and crop, open_clip under `torch.compile`: the best short script.

In its favour: decoding in hardware, one process, nothing written; only formats that DALI decodes are read, as
one image in another would end the run. It is compiled before its time counts, which starts with a few batches
decoded ahead and ends with as many. DALI's reader has no keys, so that scores go by position.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.open_clip_model import open_clip_tower
from benchmarks.peers.job import Job, PeerResult, Unavailable, images_of, members, versions
from dali_aesthetic.score.spec import OPENAI_MEAN, OPENAI_STD

BATCH = 256
READS = ("jpg", "png", "webp")
"""Members that DALI decodes, of those in the benchmark's shards."""


def run(job: Job) -> PeerResult:
    """Raises Unavailable if DALI is missing."""
    try:
        pipeline = _pipeline(job)
    except ImportError as error:
        raise Unavailable(f"DALI is not installed ({error})") from error
    tower: Any = open_clip_tower(job.spec, job.weights).to(job.device, job.dtype)
    on_gpu = job.device.startswith("cuda")
    if on_gpu:
        tower = torch.compile(tower)
    head = job.head_layer()
    keys = list(images_of(members(job.tars[0]), READS))
    before = len(_pass(job, pipeline, tower, head, len(keys) * len(job.warm_tars())))
    start = time.perf_counter()
    scores = _pass(job, pipeline, tower, head, len(keys) * len(job.few_tars()))
    return PeerResult(
        num_images=len(scores),
        seconds=time.perf_counter() - start,
        # The reader goes round and round; all tars have the same samples.
        scores={keys[(before + at) % len(keys)]: score for at, score in enumerate(scores[: len(keys)])},
        settings={
            "reads": list(READS),
            "batch_size": _batch(job),
            "precision": job.precision,
            "torch.compile": on_gpu,
        },
        writes="nothing; scores in memory",
        versions=versions("nvidia-dali-cuda120", "nvidia-dali-cuda130", "torch", "open_clip_torch"),
    )


def _batch(job: Job) -> int:
    return BATCH if job.device.startswith("cuda") else 8


def _pipeline(job: Job) -> Any:
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    on_gpu, size = job.device.startswith("cuda"), job.spec.image_size
    pipeline = Pipeline(
        batch_size=_batch(job),
        num_threads=job.num_workers,
        device_id=0 if on_gpu else None,
        prefetch_queue_depth=3,
        exec_dynamic=True,
    )
    with pipeline:
        encoded = fn.readers.webdataset(
            paths=list(job.few_tars()),
            ext=[";".join(READS)],
            missing_component_behavior="skip",
            name="reader",
        )
        images = fn.decoders.image(
            encoded, device="mixed" if on_gpu else "cpu", output_type=types.DALIImageType.RGB
        )
        images = fn.resize(images, resize_shorter=size, interp_type=types.DALIInterpType.INTERP_CUBIC)
        pipeline.set_outputs(
            fn.crop_mirror_normalize(
                images,
                crop=(size, size),
                mean=[255 * value for value in OPENAI_MEAN],
                std=[255 * value for value in OPENAI_STD],
                output_layout="CHW",
                dtype=types.DALIDataType.FLOAT16 if on_gpu else types.DALIDataType.FLOAT,
            )
        )
    pipeline.build()
    return pipeline


@torch.inference_mode()
def _pass(job: Job, pipeline: Any, tower: Any, head: torch.nn.Module, count: int) -> list[float]:
    """Scores of the next `count` images, and of as many more as fill the last batch."""
    parts: list[Tensor] = []
    held: deque[tuple[Tensor, Tensor]] = deque()
    for _ in range(0, count, _batch(job)):
        (images,) = pipeline.run()
        pixels = torch.utils.dlpack.from_dlpack(images.as_tensor())
        embeddings_ND = tower(pixels)
        parts.append(head(F.normalize(embeddings_ND.float(), dim=-1))[:, 0])
        # DALI may overwrite pixels without a reference: they are held until their scores are computed.
        held.append((pixels, parts[-1]))
        if len(held) > 2:
            held.popleft()[1].cpu()
    scores: list[float] = torch.cat(parts).cpu().tolist()
    return scores
