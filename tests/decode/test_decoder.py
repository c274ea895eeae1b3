"""Batches through real DALI on the CPU: right pixels, bad neighbours, borders, failures upstream."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from dali_aesthetic.decode import batches as batching
from dali_aesthetic.decode import decoder as module
from dali_aesthetic.decode.batches import Chunker, fill_batches
from dali_aesthetic.decode.headers import Limits, probe
from dali_aesthetic.decode.pillow import decode_reference, rescue
from dali_aesthetic.types import ImageBatch, ImageHeader, Route, Sample, ShardEnd, Status
from tests.decode.damage import frame_at, height_times, without_huffman_tables
from tests.decode.encoded import (
    DEVICES,
    SIZE,
    decode_with,
    decoder,
    mean_error,
    photo,
    pixels_by_row,
    sample,
    save,
    stream,
)


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    shots = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    return [save(Image.fromarray(shot[:, : 300 + 31 * i]), quality=90) for i, shot in enumerate(shots)]


def decode(images: list[bytes | None], batch_size: int, device: str) -> list[ImageBatch]:
    return decode_with(decoder(batch_size, device), images, batch_size)


def check_pixels(batch: ImageBatch, worst: float) -> None:
    for row, pixels in pixels_by_row(batch).items():
        reference = decode_reference(batch.encoded.samples[row].image, SIZE, Limits()).pixels_SSC
        assert mean_error(pixels, reference) < worst


@pytest.mark.parametrize("device", DEVICES)
def test_pixels_are_the_references_whatever_the_batch_size(photos: list[bytes], device: str) -> None:
    for batch_size in (1, 3, 8):
        batches = decode([*photos, *photos], batch_size, device)
        assert sum(len(b.rows_N) for b in batches) == 8
        for batch in batches:
            assert batch.images_NHWC.shape == (batch_size, SIZE, SIZE, 3)
            assert batch.images_NHWC.device.type == device
            check_pixels(batch, 0.3)


@pytest.mark.parametrize("device", DEVICES)
def test_every_sample_keeps_its_row_and_bad_ones_take_no_place(photos: list[bytes], device: str) -> None:
    images = [photos[0], b"", photos[1], None, b"<html>", photos[2], photos[3][:4000], photos[3]]
    batches = decode(images, 2, device)
    assert [len(b.rows_N) for b in batches] == [2, 2]
    keys = [s.key for b in batches for s in b.encoded.samples]
    assert keys == [f"{i:05d}" for i in range(8)]
    statuses = [h.status for b in batches for h in b.headers]
    assert statuses == ["ok", "empty", "ok", "missing_image", "undecodable", "ok", "truncated", "ok"]
    assert [e.shard.name for b in batches for e in b.encoded.ended] == ["00000"]
    for batch in batches:
        check_pixels(batch, 0.3)


@pytest.mark.parametrize("device", DEVICES)
def test_an_image_that_fails_in_dali_costs_only_itself(photos: list[bytes], device: str) -> None:
    images: list[bytes | None] = [photos[i % 4] for i in range(40)]
    images[5] = images[21] = without_huffman_tables(photos[0])
    batches = decode(images, 40, device)
    (batch,) = batches
    bad = {i for i, header in enumerate(batch.headers) if header.status is not Status.OK}
    assert bad == {5, 21}
    assert batch.headers[5].status is Status.UNDECODABLE
    assert sorted(batch.rows_N.tolist()) == [i for i in range(40) if i not in bad]
    check_pixels(batch, 0.3)


@pytest.mark.parametrize("device", DEVICES)
def test_an_image_whose_failure_dali_does_not_name_leaves_its_neighbours_as_if_alone(device: str) -> None:
    png = save(photo("coffee", 325, 251), "PNG")
    broken = png[: len(png) // 2] + png[-12:]
    (alone,), (batch,) = (decode(images, 8, device) for images in ([png], [png, broken, png]))
    assert [header.status for header in batch.headers] == ["ok", "truncated", "ok"]
    assert [header.route for header in batch.headers] == [Route.DALI, Route.NOBODY, Route.DALI]
    for pixels in pixels_by_row(batch).values():
        np.testing.assert_array_equal(pixels, pixels_by_row(alone)[0])


@pytest.mark.parametrize("device", DEVICES)
def test_what_the_reference_treats_differently_goes_to_pillow(device: str) -> None:
    shot = photo()
    alpha = shot.copy()
    alpha.putalpha(128)
    images = [save(shot.quantize(32), "PNG"), save(alpha, "PNG"), save(shot, "GIF"), save(shot, "PNG")]
    (batch,) = decode(images, 4, device)
    assert [h.route for h in batch.headers] == [Route.PILLOW, Route.PILLOW, Route.PILLOW, Route.DALI]
    assert (batch.headers[2].width, batch.headers[2].height) == (512, 512)
    by_row = pixels_by_row(batch)
    for row in range(3):
        reference = decode_reference(images[row], SIZE, Limits()).pixels_SSC
        np.testing.assert_array_equal(by_row[row], reference)


def test_a_failure_of_the_reader_arrives_after_the_batches_before_it(photos: list[bytes]) -> None:
    def failing() -> Iterator[Sample | ShardEnd]:
        for i in range(5):
            yield sample(str(i), photos[0])
        raise OSError("the disk is gone")

    batches = decoder(2).decode(fill_batches(failing(), 2, Limits()))
    assert [len(next(batches).rows_N) for _ in range(2)] == [2, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_a_decoder_serves_again_after_an_early_exit_and_after_its_end(photos: list[bytes]) -> None:
    used = decoder(2)
    for _ in used.decode(fill_batches(stream([*photos, *photos]), 2, Limits())):
        break
    for _ in range(2):
        batches = decode_with(used, photos[::-1], 2)
        assert [len(b.rows_N) for b in batches] == [2, 2]
        for batch in batches:
            check_pixels(batch, 0.3)


def test_only_bad_samples_still_make_batches_with_every_row() -> None:
    images: list[bytes | None] = [b"", None, b"junk"] * 4
    batches = decode(images, 2, "cpu")
    assert [len(b.headers) for b in batches] == [8, 4]
    assert all(len(b.rows_N) == 0 for b in batches)
    assert not any(b.images_NHWC.any() for b in batches)


@pytest.mark.parametrize("device", DEVICES)
def test_damage_costs_about_the_damaged_images_themselves(
    photos: list[bytes], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: with 5% of bad images, Pillow sees those only and DALI few images twice."""
    from dali_aesthetic.decode import decoder as module

    rescued = 0
    real = module.rescue

    def counted(*arguments: object) -> object:
        nonlocal rescued
        rescued += 1
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "rescue", counted)
    broken = without_huffman_tables(photos[0])
    images = [broken if i % 20 == 7 else photos[i % 4] for i in range(400)]
    batches = decode(images, 64, device)
    assert sum(len(batch.rows_N) for batch in batches) == 380
    assert rescued == 20


def headers(*sizes: tuple[int, int], route: Route = Route.DALI) -> list[ImageHeader]:
    return [ImageHeader(format="jpeg", width=w, height=h, route=route) for w, h in sizes]


def by_cpu(*chunks: list[int]) -> list[tuple[bytes, list[int]]]:
    return [(b"", chunk) for chunk in chunks]


def test_chunks_hold_at_most_so_many_images() -> None:
    assert Chunker(3, 10**9, 8).divide(headers(*[(10, 10)] * 7)) == by_cpu([0, 1, 2], [3, 4, 5], [6])
    assert Chunker(3, 10**9, 8).divide([]) == []


def test_chunks_hold_at_most_so_many_bytes_but_at_least_an_image() -> None:
    sizes = [(10, 10), (10, 10), (10, 10), (100, 100), (10, 10)]
    assert Chunker(64, 650, 8).divide(headers(*sizes)) == by_cpu([0, 1], [2], [3], [4])


def test_chunks_that_the_cpu_decodes_for_a_gpu_are_bounded_as_on_a_cpu() -> None:
    """Their pixels are in host memory, 512 MiB a chunk."""
    large = ImageHeader("jpeg", 8000, 8000, Route.DALI, layout=COLOUR)
    chunks = Chunker(64, 2 << 30, 8, by_layout=True).divide([large] * 11 + headers((8000, 8000)) * 5)
    assert [(layout, len(rows)) for layout, rows in chunks] == [(COLOUR, 11), (b"", 2), (b"", 2), (b"", 1)]


def test_only_dalis_rows_are_in_chunks() -> None:
    mixed = headers((1, 1)) + headers((1, 1), route=Route.PILLOW) + headers((1, 1), route=Route.NOBODY)
    assert Chunker(64, 10**9, 8).divide(mixed + headers((1, 1))) == by_cpu([0, 3])


def laid_out(*layouts: bytes) -> list[ImageHeader]:
    return [ImageHeader("jpeg", 10, 10, Route.DALI, layout=layout) for layout in layouts]


COLOUR, FULL, GREY, GREY_TOO = b"\x22\x11\x11", b"\x11\x11\x11", b"\x11", b"\x22"


def test_chunks_hold_one_layout_where_asked_and_all_rows_once() -> None:
    layouts = [COLOUR, FULL, COLOUR, GREY] * 50
    layouts[3::8] = [GREY_TOO] * len(layouts[3::8])
    chunks = Chunker(40, 10**9, 8, by_layout=True).divide(laid_out(*layouts))
    for layout, rows in chunks:
        assert {GREY if len(layouts[row]) == 1 else layouts[row] for row in rows} == {layout}
        assert rows == sorted(rows)
    assert [len(rows) for _, rows in chunks] == [34, 34, 32, 25, 25, 25, 25]
    assert sorted(row for _, rows in chunks for row in rows) == list(range(200))


def test_what_the_jpeg_engine_does_not_decode_is_the_cpus_whatever_lies_beside_it() -> None:
    """An image's decoder, and so its bits, must not depend on how many of its kind are in the batch."""
    odd = b"\x41\x11\x11"
    layouts = [COLOUR, b"", odd, FULL]
    chunks = Chunker(40, 10**9, 8, by_layout=True).divide(laid_out(*layouts))
    assert chunks == [(COLOUR, [0]), (b"", [1, 2]), (FULL, [3])]
    assert Chunker(40, 10**9, 8, by_layout=True).divide([]) == []


@pytest.mark.parametrize("device", DEVICES)
def test_pixels_have_the_same_bits_beside_other_layouts_and_in_another_order(device: str) -> None:
    """On a GPU images are grouped by layout: neither that nor the order may be seen in any pixel."""
    shots = [photo(name, 330, 250) for name in ("astronaut", "coffee", "chelsea")]
    forms: list[dict[str, object]] = [{"subsampling": s} for s in (0, 1, 2)] + [{"progressive": True}]
    images = [save(shot, **form) for shot in shots for form in forms]
    images += [save(shot.convert("L"), subsampling=s) for shot in shots for s in (0, 2)]
    images += [save(shot, "PNG") for shot in shots]
    images *= 3
    alone: dict[int, np.ndarray] = {}
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(images))
        batches = decode([images[i] for i in order], 24, device)
        seen = [pixels for batch in batches for _, pixels in sorted(pixels_by_row(batch).items())]
        assert len(seen) == len(images)
        for i, pixels in zip(order, seen, strict=True):
            np.testing.assert_array_equal(pixels, alone.setdefault(int(i) % 21, pixels))


def test_failures_halve_and_calm_doubles_within_bounds() -> None:
    chunker = Chunker(64, 10**9, 8)
    sizes = []
    for _ in range(5):
        chunker.failed()
        sizes.append(chunker.images)
    assert sizes == [32, 16, 8, 8, 8]
    for _ in range(31):
        chunker.passed()
    assert chunker.images == 8
    for _ in range(500):
        chunker.passed()
    assert chunker.images == 64
    assert len(chunker.divide(headers(*[(1, 1)] * 64))) == 1


def test_a_failure_starts_the_calm_anew_and_never_enlarges() -> None:
    chunker = Chunker(64, 10**9, 8)
    chunker.failed()
    for _ in range(20):
        chunker.passed()
    chunker.failed()
    for _ in range(20):
        chunker.passed()
    assert chunker.images == 16
    tiny = Chunker(2, 10**9, 8)
    tiny.failed()
    assert tiny.images == 2


@pytest.mark.parametrize("device", DEVICES)
def test_cut_data_are_pillows_pixels_whatever_lies_beside_them(device: str) -> None:
    """Their neighbours differ between the two runs, and so would what the JPEG engine leaves in them."""
    names = ("astronaut", "coffee", "chelsea", "rocket")
    whole = [save(photo(names[i % 4], 240 + 17 * i, 400 - 7 * i), subsampling=i % 3) for i in range(12)]
    whole += [save(photo("coffee", 300, 200).convert("L")), save(photo("rocket"), restart_marker_rows=2)]
    broken = [cut(image, 0.1 + 0.06 * i) for i, image in enumerate(whole)] + [height_times(whole[1], 2)]
    seen = []
    for beside in (whole, [save(photo("chelsea", 500, 400), subsampling=2)] * len(whole)):
        (batch,) = decode_with(decoder(64, device), [*broken, *beside], 64)
        assert all(header.status is Status.OK for header in batch.headers)
        pixels = pixels_by_row(batch)
        assert sorted(pixels) == list(range(len(broken) + len(beside)))
        seen.append([pixels[row] for row in range(len(broken))])
        for row, image in enumerate(beside, len(broken)):
            assert mean_error(pixels[row], decode_reference(image, SIZE, Limits()).pixels_SSC) < 0.3
    for image, one, other in zip(broken, *seen, strict=True):
        assert mean_error(one, decode_reference(image, SIZE, Limits()).pixels_SSC) < 0.3
        np.testing.assert_array_equal(one, other)


class ThirdsAreShort:
    """A check that finds every third image short."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def start(self, images: Sequence[bytes], headers: Sequence[ImageHeader]) -> Self:
        pairs = zip(images, headers, strict=True)
        assert all(probe(image, Limits()) == header for image, header in pairs if image)
        self.sizes.append(len(images))
        return self

    def short(self) -> list[bool]:
        return [i % 3 == 1 for i in range(self.sizes.pop(0))]


def test_rows_whose_data_are_short_are_pillows_in_their_own_places(
    photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check and the JPEG engine run on a GPU; what follows from them is the same anywhere."""
    for part in (module, batching):
        monkeypatch.setattr(part, "CPU", b"the CPU as an engine")
    monkeypatch.setattr(module, "_MOST_CHECKED", len(photos[0]))
    used = decoder(8)
    used._scan_check = ThirdsAreShort()  # type: ignore[assignment]
    images = [save(photo("coffee", 60 + i, 50)) for i in range(20)]
    images[10] = photos[0] + bytes(9)  # too long to be checked
    rescued: list[str] = []
    monkeypatch.setattr(module, "rescue", lambda *args: rescued.append(args[1].format) or rescue(*args))
    batches = decode_with(used, images, 8)
    assert [len(batch.rows_N) for batch in batches] == [8, 8, 4]
    for batch in batches:
        assert sorted(batch.rows_N.tolist()) == list(range(len(batch.rows_N)))
        check_pixels(batch, 0.3)
        short = {row for row, header in enumerate(batch.headers) if header.route is Route.PILLOW}
        assert short == {row for row in (1, 4, 7) if row < len(batch.headers)} | (
            {2} if batch is batches[1] else set()
        )
    assert len(rescued) == 8


@pytest.mark.gpu
def test_the_wait_for_the_jpeg_engine_is_counted_apart_from_that_for_cores(photos: list[bytes]) -> None:
    used = decoder(8, "cuda")
    decode_with(used, [save(photo("coffee", 900, 700), "PNG")] * 32, 8)
    assert used.engine.blocked_on_empty == 0
    decode_with(used, photos * 16, 8)
    assert (used.engine.blocked_on_empty > 0) == used._has_engine


@pytest.mark.parametrize(("compiler", "reason"), [(None, "no C compiler"), ("/usr/bin/gcc", "triton")])
def test_where_scans_can_not_be_checked_a_warning_says_what_goes_unnoticed(
    compiler: str | None, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: compiler)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "dali_aesthetic.decode.scan_check", raising=False)
    assert module._scan_check(torch.device("cuda")) is None
    (message,) = caplog.messages
    assert "JPEGs that were cut" in message
    assert reason in message


def cut(image: bytes, share: float) -> bytes:
    """Cut within the scan's data, with an end marker."""
    start = image.index(b"\xff\xda", frame_at(image)) + 14
    return image[: start + int((len(image) - start) * share)] + b"\xff\xd9"
