"""From DALI's buffers to torch: DLPack, no copy; who owns the memory, and until when.

DALI runs with its dynamic executor, where an output lives as long as anything refers to it, and outputs are
taken host-synchronously: the data is there before torch sees the pointer, whatever stream reads it. The
other direction is the trap: DALI frees or reuses a buffer on its own stream when the last reference goes,
so a reference must be kept until the last kernel that reads it has run. A batch that is handed on whole is
kept by its reader (see `score.scorer`); parts that are copied together are kept here until the copy is done.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.dlpack


def to_torch(tensor_list: Any) -> torch.Tensor:
    """A dense DALI TensorList as a torch tensor over the same memory, uint8 [n, S, S, 3]."""
    images_NHWC: torch.Tensor = torch.utils.dlpack.from_dlpack(tensor_list.as_tensor())
    return images_NHWC


def assemble(
    parts_NHWC: list[torch.Tensor],
    pixels_SSC: list[npt.NDArray[np.uint8]],
    *,
    batch_size: int,
    image_size: int,
    device: torch.device,
) -> torch.Tensor:
    """One batch, uint8 [batch_size, S, S, 3] on `device`: the parts, then the single images, then zeros.

    A single part that fills the batch is returned as it is. The padding keeps the encoder's shape, and so
    every score's bits, independent of how many images the batch happens to hold.
    """
    if len(parts_NHWC) == 1 and len(parts_NHWC[0]) == batch_size:
        return parts_NHWC[0]
    shape = (batch_size, image_size, image_size, 3)
    if device.type == "cpu":
        return _fill(torch.zeros(shape, dtype=torch.uint8), parts_NHWC, pixels_SSC)
    stream = _copy_stream(device)
    with torch.cuda.stream(stream):
        batch = _fill(torch.zeros(shape, dtype=torch.uint8, device=device), parts_NHWC, pixels_SSC)
    # Blocking, as the copies may stand behind the encoder: waiting for the stream itself keeps a core busy.
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    done.record(stream)
    done.synchronize()
    return batch


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of our own: the default one waits for the encoder, which would end the overlap. One for all
    batches: each stream takes up a hardware queue (see the package's `__init__`).
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _fill(
    batch_NHWC: torch.Tensor, parts_NHWC: list[torch.Tensor], pixels_SSC: list[npt.NDArray[np.uint8]]
) -> torch.Tensor:
    start = 0
    for part in parts_NHWC:
        batch_NHWC[start : start + len(part)].copy_(part)
        start += len(part)
    if pixels_SSC:
        batch_NHWC[start : start + len(pixels_SSC)].copy_(torch.from_numpy(np.stack(pixels_SSC)))
    return batch_NHWC
