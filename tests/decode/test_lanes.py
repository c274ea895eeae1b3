"""Pipelines side by side give their chunks back in the order they were fed, failures in their place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dali_aesthetic.decode.geometry import resize_steps
from dali_aesthetic.decode.pipelines import Feed, Lanes, Source, build_pipeline
from tests.conftest import jpeg

SIZE = 32


def flat(shade: int) -> bytes:
    return jpeg(Image.new("RGB", (SIZE, SIZE), (shade, shade, shade)), quality=100)


def feed_of(images: list[bytes]) -> Feed:
    steps = resize_steps([(SIZE, SIZE)] * len(images), SIZE)
    return [np.frombuffer(image, np.uint8) for image in images], *steps


def make(chunks: Iterator[Feed], num_lanes: int) -> Lanes:
    return Lanes(
        lambda: next(chunks),
        lambda source: build_pipeline(source, max_batch=4, num_threads=1, device_id=None, prefetch=2),
        num_lanes,
    )


def shade_of(lanes: Lanes) -> list[int] | None:
    try:
        with lanes.oldest() as images:
            return [int(image.mean().round()) for image in np.array(images.as_tensor())]
    except RuntimeError:
        return None


@pytest.mark.parametrize("num_lanes", [1, 2, 3])
def test_chunks_come_back_in_order_and_a_failure_takes_its_own_place(num_lanes: int) -> None:
    chunks: list[list[bytes]] = [[flat(10 * i + j) for j in range(1 + i % 3)] for i in range(12)]
    chunks[5] = [b"\xff\xd8 no picture"]
    lanes = make(iter([feed_of(chunk) for chunk in chunks]), num_lanes)
    lanes.start()
    got = [shade_of(lanes) for _ in chunks]
    expected = [[10 * i + j for j in range(1 + i % 3)] for i in range(12)]
    assert got == [None if i == 5 else shades for i, shades in enumerate(expected)]


def test_a_drained_stream_leaves_nothing_behind_for_the_next() -> None:
    streams = [[feed_of([flat(1)])] * 3, [feed_of([flat(50)]), feed_of([flat(60)])]]
    current: list[Iterator[Feed]] = [iter(streams[0])]

    def source() -> Feed:
        return next(current[0])

    def build(source: Source) -> Any:
        return build_pipeline(source, max_batch=4, num_threads=1, device_id=None, prefetch=1)

    lanes = Lanes(source, build, 2)
    lanes.start()
    assert shade_of(lanes) == [1]
    current[0] = iter([])
    lanes.drain()
    current[0] = iter(streams[1])
    lanes.start()
    assert [shade_of(lanes), shade_of(lanes)] == [[50], [60]]
