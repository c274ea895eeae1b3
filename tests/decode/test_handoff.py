"""Parts to one batch: order, padding, and no copy where none is needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dali_aesthetic.decode.handoff import assemble, to_torch
from tests.decode.encoded import DEVICES


def part(values: list[int], device: str = "cpu") -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8, device=device)[:, None, None, None].expand(-1, 4, 4, 3)


def join(parts: list[torch.Tensor], single: list[int], batch_size: int, device: str = "cpu") -> torch.Tensor:
    pixels = [np.full((4, 4, 3), value, np.uint8) for value in single]
    return assemble(parts, pixels, batch_size=batch_size, image_size=4, device=torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
def test_parts_come_first_then_single_images_then_zeros(device: str) -> None:
    batch = join([part([1, 2], device), part([3], device)], [4, 5], 8, device)
    assert batch.device.type == device
    assert batch.shape == (8, 4, 4, 3)
    assert batch.cpu().amax((1, 2, 3)).tolist() == batch.cpu().amin((1, 2, 3)).tolist()
    assert batch.cpu()[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 0, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_a_part_that_fills_the_batch_is_handed_on_as_it_is(device: str) -> None:
    whole = part([1, 2, 3], device)
    assert join([whole], [], 3, device).data_ptr() == whole.data_ptr()
    assert join([whole], [], 4, device).data_ptr() != whole.data_ptr()


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_at_all_is_a_batch_of_zeros(device: str) -> None:
    batch = join([], [], 2, device)
    assert not batch.any()
    assert batch.dtype == torch.uint8


def test_dalis_memory_is_torchs() -> None:
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(batch_size=2, num_threads=1, device_id=None)
    with pipeline:
        images = [np.full((4, 4, 3), value, np.uint8) for value in (7, 9)]
        pipeline.set_outputs(fn.external_source(source=lambda: images, batch=True, layout="HWC"))
    pipeline.build()
    (tensors,) = pipeline.run()
    tensor = to_torch(tensors)
    assert tensor[:, 0, 0, 0].tolist() == [7, 9]
    assert tensor.data_ptr() == tensors.as_tensor().data_ptr()
    assert not tensor.is_cuda
