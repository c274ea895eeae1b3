"""DALI's resize against PIL's on real photos, odd sizes and line art, on the CPU and the GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dali_aesthetic.config import ConfigError
from dali_aesthetic.decode import pipelines as module
from dali_aesthetic.decode.geometry import resize_steps
from dali_aesthetic.decode.handoff import to_torch
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.decode.pillow import decode_reference
from dali_aesthetic.decode.pipelines import (
    PIECE,
    Feed,
    Lane,
    Lanes,
    Retry,
    Source,
    build_pipeline,
    has_jpeg_engine,
    import_dali,
)
from tests.conftest import jpeg
from tests.decode.encoded import SIZE, decode_with, decoder, mean_error, photo, pixels_by_row, save

LIMITS = Limits(max_pixels=10**9, max_pixels_per_byte=10**9)
MEAN, WORST = 0.05, 0.2
"""Over all images, and of one image, in 1/255."""
DEVICES = [pytest.param(None, id="cpu"), pytest.param(0, id="gpu", marks=pytest.mark.gpu)]
SIDES = (32, 223, 224, 225, 226, 227, 229, 449)
ODD = [
    *((width, height) for width in SIDES for height in SIDES),
    *[(40, 4000), (4000, 40), (97, 1009), (2240, 224), (33, 3300), (6001, 601)],
]
"""Below `probe.TINY_SIDE` DALI is not asked."""


def decode(images: list[bytes], sizes: list[tuple[int, int]], device_id: int | None) -> np.ndarray:
    feed = [np.frombuffer(image, np.uint8) for image in images], *resize_steps(sizes, SIZE)
    pipeline = build_pipeline(
        lambda: feed,
        max_batch=len(images),
        num_threads=2,
        device_id=device_id,
        prefetch=1,
    )
    (decoded,) = pipeline.run()
    return to_torch(decoded).cpu().numpy()


def errors(images: list[Image.Image], device_id: int | None, format: str = "PNG") -> list[float]:
    """Mean error of each image. PNG shows the resize alone."""
    encoded = [save(image, format) for image in images]
    decoded = decode(encoded, [image.size for image in images], device_id)
    pairs = zip(decoded, encoded, strict=True)
    return [mean_error(ours, decode_reference(image, SIZE, LIMITS).pixels_SSC) for ours, image in pairs]


@pytest.mark.parametrize("device_id", DEVICES)
def test_real_photos_are_pils(photos: list[Image.Image], device_id: int | None) -> None:
    found = errors(photos, device_id, "JPEG")
    assert np.mean(found) <= MEAN
    assert max(found) <= WORST


@pytest.mark.parametrize("device_id", DEVICES)
def test_odd_sizes_are_pils(device_id: int | None) -> None:
    source = photo("coffee")
    found = errors([source.resize(size) for size in ODD], device_id)
    assert np.mean(found) <= MEAN
    assert {size: error for size, error in zip(ODD, found, strict=True) if error > WORST} == {}


def test_tiny_images_are_pils_because_it_decodes_them() -> None:
    """PIL renormalises its kernel at the border, DALI repeats the edge: here the border is a large share."""
    sizes = [(1, 1), (1, 100), (100, 1), (7, 700), (700, 7), (2, 2), (31, 31), (3, 300), (5000, 31)]
    images = [save(photo("coffee", *size)) for size in sizes]
    (batch,) = decode_with(decoder(16), images, 16)
    for row, pixels in pixels_by_row(batch).items():
        np.testing.assert_array_equal(pixels, decode_reference(images[row], SIZE, LIMITS).pixels_SSC)
    assert len(batch.rows_N) == len(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("device_id", DEVICES)
def test_a_hundred_megapixels_are_pils(device_id: int | None) -> None:
    large = photo("coffee").resize((12000, 9000))
    (error,) = errors([large], device_id, "JPEG")
    assert error <= WORST


@pytest.mark.parametrize("device_id", DEVICES)
def test_grey_jpegs_become_rgb(device_id: int | None) -> None:
    (error,) = errors([photo().convert("L")], device_id, "JPEG")
    assert error <= WORST


@pytest.mark.parametrize("device_id", DEVICES)
def test_black_and_white_is_pils(device_id: int | None) -> None:
    """PIL clips between its two passes, which shows where pixels overshoot: one resize is 2.8 off here."""
    noise = np.random.default_rng(0).integers(0, 2, (700, 900), np.uint8) * 255
    stripes = np.tile(np.repeat([0, 255], 3), (900, 150)).astype(np.uint8)
    found = errors([Image.fromarray(pixels).convert("RGB") for pixels in (noise, stripes)], device_id)
    assert max(found) <= WORST


def test_a_missing_dali_is_told_with_the_extra_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ConfigError, match=r"needs NVIDIA DALI .*pip install '\.\[cuda13\]'.*'\.\[cuda12\]'"):
        import_dali()
    with pytest.raises(ConfigError, match="needs NVIDIA DALI"):
        decode([], [], None)


LANE_SIZE = 32


def flat(shade: int) -> bytes:
    return jpeg(Image.new("RGB", (LANE_SIZE, LANE_SIZE), (shade, shade, shade)), quality=100)


def feed_of(images: list[bytes]) -> Feed:
    steps = resize_steps([(LANE_SIZE, LANE_SIZE)] * len(images), LANE_SIZE)
    return [np.frombuffer(image, np.uint8) for image in images], *steps


def lanes_of(most: int, built: list[bytes] | None = None) -> Lanes:
    def build(source: Source, layout: bytes, depth: int) -> Any:
        if built is not None:
            built.append(layout)
        return build_pipeline(source, max_batch=4, num_threads=1, device_id=None, prefetch=2, by_engine=False)

    return Lanes(build, 4, 2, most)


def shade_of(lane: Lane) -> list[int] | None:
    try:
        with lane.oldest() as (images,):
            return [int(image.mean().round()) for image in np.array(images.as_tensor())]
    except RuntimeError:
        return None


@pytest.mark.parametrize("most", [1, 2, 3])
def test_chunks_come_back_in_order_and_a_failure_takes_its_own_place(most: int) -> None:
    chunks: list[list[bytes]] = [[flat(10 * i + j) for j in range(1 + i % 3)] for i in range(12)]
    chunks[5] = [b"\xff\xd8 no picture"]
    lanes = lanes_of(most)
    submitted = [lanes.submit(feed_of(chunk), b"") for chunk in chunks]
    assert len(set(map(id, submitted))) == most
    got = [shade_of(lane) for lane in submitted]
    expected = [[10 * i + j for j in range(1 + i % 3)] for i in range(12)]
    assert got == [None if i == 5 else shades for i, shades in enumerate(expected)]


def test_a_layout_alone_has_several_lanes_and_layouts_that_come_together_have_one_each() -> None:
    built: list[bytes] = []
    lanes = lanes_of(2, built)

    def submit(*layouts: bytes) -> list[Lane]:
        return [lanes.submit(feed_of([flat(9)]), layout) for layout in layouts]

    alone = submit(*[b"a"] * 6)
    assert len(set(map(id, alone))) == 2
    together = submit(*[b"b", b"a"] * 4)
    assert len(set(map(id, together))) == 2
    assert all(lane is alone[0] for lane in together[1::2])
    assert sorted(built) == [b"a", b"a", b"b"]
    assert [shade_of(lane) for lane in [*alone, *together]] == [[9]] * 14
    assert len(set(map(id, submit(*[b"a"] * 6)))) == 2
    lanes.drain()


def test_a_pipelines_first_chunk_is_full() -> None:
    """Its size bounds how many images of a later chunk the JPEG engine takes."""
    sizes: list[int] = []

    def build(source: Source) -> Any:
        def counted() -> Feed:
            chunk = source()
            sizes.append(len(chunk[0]))
            return chunk

        return build_pipeline(
            counted, max_batch=4, num_threads=1, device_id=None, prefetch=2, by_engine=False
        )

    lane = Lane(build, 4, 2)
    lane.submit(feed_of([flat(1)]))
    assert shade_of(lane) == [1]
    assert sizes == [4, 4, 1]


def test_a_drained_lane_leaves_nothing_behind_for_the_next_stream() -> None:
    lanes = lanes_of(1)
    lane = [lanes.submit(feed_of([flat(1)]), b"") for _ in range(5)][-1]
    assert shade_of(lane) == [1]
    lanes.drain()
    assert len(lane) == 0
    for shade in (50, 60):
        lanes.submit(feed_of([flat(shade)]), b"")
    assert [shade_of(lane), shade_of(lane)] == [[50], [60]]


ROWS = list(range(100, 140))


class Pipeline:
    """Decodes rows to their number; raises as DALI does while a bad row is in the feed."""

    def __init__(self, source: Callable[[], Any], bad: set[int], message: str) -> None:
        self.source, self.bad, self.message, self.runs = source, bad, message, 0
        self.feed: Any = None

    def schedule_run(self) -> None:
        self.feed = self.source()

    def share_outputs(self) -> tuple[Any]:
        if isinstance(self.feed, tuple):  # what fills the first chunk
            assert len(self.feed[0]) == PIECE
            return (None,)
        self.runs += 1
        assert 0 < len(self.feed) <= PIECE
        for position, row in enumerate(self.feed):
            if row in self.bad:
                raise RuntimeError(self.message.format(position))
        return (torch.tensor(self.feed, dtype=torch.uint8),)

    def release_outputs(self) -> None:
        self.feed = None


NAMED = "Error in CPU operator ... encountered:\nFailed to decode sample #{} : \nCurrent pipeline object is"


def retried(
    bad: set[int], monkeypatch: pytest.MonkeyPatch, message: str = NAMED
) -> tuple[list[int], list[Pipeline]]:
    pipelines: list[Pipeline] = []

    def build(source: Callable[[], Any]) -> Pipeline:
        pipelines.append(Pipeline(source, bad, message))
        return pipelines[-1]

    monkeypatch.setattr(module, "to_torch", lambda images: images)
    retry = Retry(build)  # type: ignore[arg-type]
    got: list[int] = []
    for _ in range(2):
        got = []
        for rows, (images,) in retry.decode(ROWS, lambda rows: rows):  # type: ignore[arg-type, return-value]
            np.testing.assert_array_equal(images, rows)
            got += rows
    return got, pipelines


@pytest.mark.parametrize("bad", [set(), {100}, {139}, {100, 101, 115, 116}, set(ROWS)])
def test_all_but_the_named_rows_are_decoded_by_one_pipeline(
    bad: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    got, (pipeline,) = retried(bad, monkeypatch)
    assert got == [row for row in ROWS if row not in bad]
    # A run for each piece, and one more for each bad row; a piece of bad rows only needs no last run.
    assert pipeline.runs <= 2 * (3 + len(bad))


@pytest.mark.parametrize("message", ["nvImageCodec failure: '#4'", "Failed to decode sample #99", ""])
@pytest.mark.parametrize("bad", [{120}, {100, 115, 116, 139}, set(ROWS)])
def test_a_message_that_names_no_row_costs_the_bad_rows_only(
    message: str, bad: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    got, (pipeline,) = retried(bad, monkeypatch, message)
    assert got == [row for row in ROWS if row not in bad]
    assert pipeline.runs <= 2 * (3 + 8 * len(bad)), "two halves at each of four levels"


def test_the_pipeline_is_built_when_it_is_needed() -> None:
    Retry(lambda *_: pytest.fail("built"))


@pytest.mark.parametrize(
    ("fails", "has"), [("nvmlInit", True), ("nvmlDeviceGetJpgUtilization", False), ("", True)]
)
def test_a_gpu_has_a_jpeg_engine_where_its_driver_does_not_deny_it(
    fails: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pynvml

    class Properties:
        uuid = "of this GPU"

    def call(name: str) -> Callable[..., object]:
        def called(*_: object) -> object:
            if name == fails:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return [0, 0]

        return called

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    for name in ("nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetJpgUtilization"):
        monkeypatch.setattr(pynvml, name, call(name))
    assert has_jpeg_engine(torch.device("cuda")) is has
