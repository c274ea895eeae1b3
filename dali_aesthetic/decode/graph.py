"""The DALI graph: encoded bytes and a region in, uint8 RGB squares out.

A region resize with the reference's integer geometry and uint8 output is 0.163/255 from PIL on average
(the usual `resize_shorter` + centre crop: 3.7/255). `adjust_orientation=False` because the reference
ignores EXIF; `jpeg_fancy_upsampling=True` because the hardware decoder otherwise replicates chroma.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = list[npt.NDArray[Any]]
Source = Callable[[], tuple[Arrays, npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""Gives the next batch: encoded images (uint8 [bytes] each), and the regions' first and last corners as
(y, x) in source pixels (float32 [n, 2]). Ends by StopIteration and raises nothing else: an exception here
would surface out of turn, before batches that are already finished."""


def build_pipeline(
    source: Source, *, image_size: int, max_batch: int, num_threads: int, device_id: int | None, prefetch: int
) -> Any:
    """A built DALI pipeline, decoding on the GPU `device_id`, or on the CPU where that is None.

    The dynamic executor is a must: with it a batch that raises takes its own place only and the pipeline
    goes on, without it every later batch is lost. `no_copy` feeds views as they are; DALI holds a
    reference to each until its batch is done. Output: uint8 [n, image_size, image_size, 3] (RGB).
    """
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(
        batch_size=max_batch,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
        exec_dynamic=True,
    )
    uint8, float32 = types.DALIDataType.UINT8, types.DALIDataType.FLOAT
    with pipeline:
        data, start, end = fn.external_source(
            source=source, num_outputs=3, batch=True, no_copy=True, dtype=[uint8, float32, float32], ndim=1
        )
        images = fn.resize(
            _decode(fn, data, types.DALIImageType.RGB, device_id),
            size=(image_size, image_size),
            roi_start=start,
            roi_end=end,
            interp_type=types.DALIInterpType.INTERP_CUBIC,
            antialias=True,
        )
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline


def _decode(fn: Any, data: Any, output_type: Any, device_id: int | None) -> Any:
    same = {"output_type": output_type, "adjust_orientation": False, "jpeg_fancy_upsampling": True}
    if device_id is None:
        return fn.decoders.image(data, device="cpu", **same)
    # All that the hardware can decode goes there (load 1.0), so that an image's pixels don't depend on
    # its place in a batch and the decoder takes no SM time from the encoder.
    return fn.decoders.image(data, device="mixed", hw_decoder_load=1.0, **same)
