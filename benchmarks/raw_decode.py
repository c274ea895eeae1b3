"""DALI alone, without our loop around it: what the JPEG engines give at most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.timing import Work, finish
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.decode.geometry import resize_steps
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.decode.pipelines import Feed, build_pipeline
from dali_aesthetic.overlap import cpu_count
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.read import read_shards
from dali_aesthetic.types import Route

_PREFETCH = 2


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """Encoded images as arrays without a copy, and their (width, height)."""

    data: list[npt.NDArray[np.uint8]]
    sizes: list[tuple[int, int]]


def load_images(pattern: str, limits: Limits) -> EncodedImages:
    """The images of shards that DALI would be given, all of them."""
    found = EncodedImages([], [])
    for batch in fill_batches(read_shards(plan_shards(pattern)), 1024, limits):
        for sample, header in zip(batch.samples, batch.headers, strict=True):
            if header.route is Route.DALI and sample.image is not None:
                found.data.append(np.frombuffer(sample.image, np.uint8))
                found.sizes.append((header.width, header.height))
    return found


def dali_work(
    images: EncodedImages, device: torch.device, batch_size: int, *, resize: bool, image_size: int = 224
) -> Work:
    """Goes through the images once, in batches; with the package's own graph, or decoding alone."""
    batch_size = min(batch_size, len(images.data), 512)
    device_id = (device.index or 0) if device.type == "cuda" else None
    feeds: list[Feed] = [
        _feed(images, start, batch_size, image_size if resize else 0)
        for start in range(0, len(images.data) - batch_size + 1, batch_size)
    ]
    pending: Iterator[Feed] = iter(())

    def source() -> Any:
        feed = next(pending)
        return feed if resize else feed[0]

    pipeline = _pipeline(source, batch_size, device_id, resize)

    def work() -> int:
        nonlocal pending
        pending = iter(feeds)
        pipeline.reset()
        done = 0
        for _ in feeds:
            pipeline.run()
            done += batch_size
        finish(device)
        return done

    return work


def _feed(images: EncodedImages, start: int, count: int, image_size: int) -> Feed:
    """A batch, with the arguments of its resizes where these have an `image_size`."""
    data, sizes = images.data[start : start + count], images.sizes[start : start + count]
    return (data, *resize_steps(sizes, image_size)) if image_size else (data,)


def _pipeline(source: Any, batch_size: int, device_id: int | None, resize: bool) -> Any:
    if resize:
        return build_pipeline(
            source,
            max_batch=batch_size,
            num_threads=cpu_count(),
            device_id=device_id,
            prefetch=_PREFETCH,
        )
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=cpu_count(),
        device_id=device_id,
        prefetch_queue_depth=_PREFETCH,
        exec_dynamic=True,
    )
    with pipeline:
        data = fn.external_source(
            source=source, batch=True, no_copy=True, dtype=types.DALIDataType.UINT8, ndim=1
        )
        options: dict[str, Any] = {"device": "cpu"}
        if device_id is not None:
            options = {"device": "mixed", "hw_decoder_load": 1.0}
        images: Any = fn.decoders.image(
            data,
            output_type=types.DALIImageType.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
            **options,
        )
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline
