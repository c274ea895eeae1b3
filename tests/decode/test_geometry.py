"""The geometry against torchvision's own resize and crop, as open_clip composes them."""

from __future__ import annotations

import random

import numpy as np
import open_clip
import pytest
from torchvision.transforms import CenterCrop, InterpolationMode, Resize
from torchvision.transforms import functional as functional

from dali_aesthetic.decode.geometry import Geometry, resize_steps, source_boxes

GRID = [*range(1, 12), *range(220, 232), *range(330, 342), 447, 448, 449, 450, 451, 452, 598, 599, 600]


class Recorder:
    """Stands for a PIL image: answers with its size, and records what the transform asks of it."""

    channels = 3

    def __init__(self, width: int, height: int, asked: dict[str, tuple[int, ...]]) -> None:
        self.size, self.asked = (width, height), asked


def record(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms import _functional_pil as pil

    def resize(image: Recorder, size: list[int], interpolation: int) -> Recorder:
        image.asked["resize"] = (size[1], size[0])
        return Recorder(size[1], size[0], image.asked)

    def crop(image: Recorder, top: int, left: int, height: int, width: int) -> Recorder:
        image.asked["crop"] = (left, top, width, height)
        return Recorder(width, height, image.asked)

    monkeypatch.setattr(functional, "_log_api_usage_once", lambda _: None)
    monkeypatch.setattr(functional.F_pil, "resize", resize)
    monkeypatch.setattr(functional.F_pil, "crop", crop)
    monkeypatch.setattr(pil, "_is_pil_image", lambda _: True)


def reference(width: int, height: int, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    asked: dict[str, tuple[int, ...]] = {"resize": (width, height)}  # not asked where it fits already
    image = Resize(size, InterpolationMode.BICUBIC)(Recorder(width, height, asked))
    CenterCrop(size)(image)
    return asked["resize"], asked["crop"]


def sizes() -> list[tuple[int, int]]:
    rng = random.Random(0)
    extreme = [(1, 65500), (65500, 1), (7, 700), (700, 7), (1, 100), (100, 1), (12000, 9000), (3, 10007)]
    anywhere = [(rng.randint(1, 600), rng.randint(1, 600)) for _ in range(3000)]
    return [(w, h) for w in GRID for h in GRID] + extreme + anywhere


def test_open_clips_transform_is_a_resize_and_a_centre_crop() -> None:
    """The reference is what the other tests here compare with; this holds what it is made of."""
    resize, crop, *_ = open_clip.image_transform(224, is_train=False).transforms
    assert isinstance(resize, Resize)
    assert (resize.size, resize.interpolation, resize.max_size) == (224, InterpolationMode.BICUBIC, None)
    assert isinstance(crop, CenterCrop)
    assert tuple(crop.size) == (224, 224)


@pytest.mark.parametrize("size", [224, 336])
def test_sizes_and_crops_are_torchvisions(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    record(monkeypatch)
    for width, height in sizes():
        ours = Geometry.of(width, height, size)
        resized, crop = reference(width, height, size)
        assert (ours.resized_width, ours.resized_height) == resized, (width, height)
        assert (ours.left, ours.top, size, size) == crop, (width, height)


def test_the_source_box_lies_in_the_image_and_is_square_up_to_rounding() -> None:
    for width, height in sizes():
        left, top, right, bottom = Geometry.of(width, height, 224).source_box(width, height)
        assert 0 <= left < right <= width + 1e-6
        assert 0 <= top < bottom <= height + 1e-6
        # The long side is truncated to whole pixels: at most 1/224 of the short one.
        assert abs((right - left) - (bottom - top)) <= min(width, height) / 224 + 1e-6


@pytest.mark.parametrize("size", [224, 336, 378])
def test_many_boxes_at_once_are_the_single_ones_to_the_bit(size: int) -> None:
    rng = random.Random(size)
    large = [(rng.randint(1, 1 << 16), rng.randint(1, 1 << 16)) for _ in range(3000)]
    largest = [(2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1)]
    some = [*sizes(), *large, *largest]
    expected = np.array([Geometry.of(w, h, size).source_box(w, h) for w, h in some], np.float32)
    assert np.array_equal(source_boxes(some, size), expected.T)


def test_no_images_are_no_regions() -> None:
    assert [array.shape for array in resize_steps([], 224)] == [(0, 2)] * 6


def test_one_resize_takes_the_columns_of_the_box_and_the_next_its_rows() -> None:
    some = [(640, 480), (30, 500), (224, 224)]
    boxes = [Geometry.of(w, h, 224).source_box(w, h) for w, h in some]
    first_size, first_start, first_end, second_size, second_start, second_end = resize_steps(some, 224)
    for i, ((_, height), (left, top, right, bottom)) in enumerate(zip(some, boxes, strict=True)):
        assert first_size[i].tolist() == [height, 224]
        np.testing.assert_allclose([*first_start[i], *first_end[i]], (0, left, height, right), rtol=1e-6)
        assert second_size[i].tolist() == [224, 224]
        np.testing.assert_allclose([*second_start[i], *second_end[i]], (top, 0, bottom, 224), rtol=1e-6)
    for array in resize_steps(some, 224):
        assert array.dtype == np.float32
