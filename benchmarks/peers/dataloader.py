"""webdataset + DataLoader with Pillow + open_clip: the usual script, and the way of clip-retrieval.

In its favour: it takes every format that Pillow reads, and what Pillow can't read is skipped; as many workers
as cores, kept from the warm-up to the pass that counts; images go between processes as uint8 and are
normalised on the device (the usual script sends float32, four times as much); only scores are kept, no image
is written.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.open_clip_model import open_clip_tower
from benchmarks.peers.job import Job, PeerResult, Unavailable, versions
from dali_aesthetic.score.clip import Normalize
from dali_aesthetic.shards.formats import IMAGE_EXTENSIONS

BATCH = 256


def run(job: Job) -> PeerResult:
    """Raises Unavailable if webdataset is missing."""
    try:
        import webdataset as wds
    except ImportError as error:
        raise Unavailable(f"webdataset is not installed ({error})") from error
    batch = BATCH if job.device.startswith("cuda") else 8
    tars = list(job.few_tars())
    workers = min(job.num_workers, len(tars))
    dataset = wds.DataPipeline(
        _Passes(job.warm_tars(), tars),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.map(ToPixels(job.spec.image_size), handler=wds.ignore_and_continue),
        wds.batched(batch),
    )
    loader = wds.WebLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        pin_memory=job.device.startswith("cuda"),
        prefetch_factor=2,
        persistent_workers=True,
    )
    score = _Scorer(job)
    _pass(loader, score)
    start = time.perf_counter()
    count, scores = _pass(loader, score)
    return PeerResult(
        num_images=count,
        seconds=time.perf_counter() - start,
        scores=scores,
        settings={"workers": workers, "batch_size": batch, "precision": job.precision, "prefetch": 2},
        writes="nothing; scores in memory",
        versions=versions("webdataset", "torch", "open_clip_torch", "pillow"),
    )


class _Passes:
    """The tars of each pass: few in the first, all in the next. Workers are kept and count the passes."""

    def __init__(self, *passes: Sequence[str]) -> None:
        self._passes = list(passes)

    def __call__(self) -> Iterator[dict[str, str]]:
        return iter([{"url": tar} for tar in self._passes.pop(0)])


class ToPixels:
    """In a worker: from a sample to its key and a uint8 RGB square, by open_clip's transform.

    Raises what Pillow raises.
    """

    def __init__(self, image_size: int) -> None:
        import open_clip

        steps: Any = open_clip.image_transform(image_size, is_train=False)
        self._steps = [step for step in steps.transforms if type(step).__name__ in ("Resize", "CenterCrop")]

    def __call__(self, sample: Mapping[str, Any]) -> tuple[str, Any]:
        content = next(sample[suffix] for suffix in IMAGE_EXTENSIONS if suffix in sample)
        image = Image.open(io.BytesIO(content))
        for step in self._steps:
            image = step(image)
        return sample["__key__"], torch.from_numpy(np.array(image.convert("RGB")))


class _Scorer:
    """Pixels to scores, in the job's precision."""

    def __init__(self, job: Job) -> None:
        self._device = job.device
        self._tower = open_clip_tower(job.spec, job.weights).to(job.device, job.dtype)
        self._normalize = Normalize(job.spec, job.dtype).to(job.device)
        self._head = job.head_layer()

    @torch.inference_mode()
    def __call__(self, pixels_NHWC: Tensor) -> Tensor:
        pixels_NHWC = pixels_NHWC.to(self._device, non_blocking=True)
        embeddings_ND = self._tower(self._normalize(pixels_NHWC))
        scores: Tensor = self._head(F.normalize(embeddings_ND.float(), dim=-1))[:, 0]
        return scores


def _pass(loader: Iterable[Any], score: _Scorer) -> tuple[int, dict[str, float]]:
    """A pass over all images; the number of images and scores by key (all tars have the same keys)."""
    keys: list[str] = []
    parts = []
    for batch_keys, images in loader:
        pixels = images if isinstance(images, Tensor) else torch.stack(list(images))
        parts.append(score(pixels))
        keys += batch_keys
    scores = torch.cat(parts).float().cpu().tolist()
    return len(keys), dict(zip(keys, scores, strict=True))
