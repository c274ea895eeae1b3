"""Filling batches: what counts, what travels along, where shards end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from dali_aesthetic.decode.batches import check, fill_batches
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.types import EncodedBatch, ImageHeader, Route, Sample, Shard, ShardEnd, Status
from tests.decode.encoded import noise, sample, save

GOOD, BAD = save(noise()), b"<html>"
PILLOW = save(noise(), "GIF")


def end(name: str = "00000") -> ShardEnd:
    return ShardEnd(shard=Shard(index=0, name=name, kind="tar", source=f"{name}.tar"))


def fill(items: list[bytes | ShardEnd | None], batch_size: int) -> list[EncodedBatch]:
    stream = [item if isinstance(item, ShardEnd) else sample(str(i), item) for i, item in enumerate(items)]
    return list(fill_batches(stream, batch_size, Limits()))


def test_a_batch_is_full_of_decodable_images() -> None:
    batches = fill([GOOD, BAD, PILLOW, GOOD, None, GOOD, GOOD, end()], 2)
    assert [len(batch.samples) for batch in batches] == [3, 3, 1]
    assert [sum(h.route is not Route.NOBODY for h in batch.headers) for batch in batches] == [2, 2, 1]


def test_bad_samples_behind_a_full_batch_belong_to_the_next() -> None:
    batches = fill([GOOD, BAD, BAD, GOOD, end()], 1)
    assert [[s.key for s in batch.samples] for batch in batches] == [["0"], ["1", "2", "3"]]


def test_a_run_of_bad_samples_ends_a_batch_too() -> None:
    batches = fill([BAD] * 20 + [end()], 2)
    assert [len(batch.samples) for batch in batches] == [8, 8, 4]


def test_shards_that_end_at_a_border_are_in_the_batch_of_their_last_sample() -> None:
    batches = fill([GOOD, GOOD, end("a"), end("b"), GOOD, end("c")], 2)
    assert [[e.shard.name for e in batch.ended] for batch in batches] == [["a", "b"], ["c"]]


def test_batches_fill_across_shards() -> None:
    (batch,) = fill([GOOD, end("a"), GOOD, end("b")], 4)
    assert len(batch.samples) == 2
    assert [e.shard.name for e in batch.ended] == ["a", "b"]


def test_what_a_prefilter_leaves_fills_the_batches_in_order() -> None:
    """Others travel along with their sizes; bad samples are not judged."""
    stream = [sample(str(i), BAD if i % 7 == 0 else GOOD) for i in range(2500)]
    stream[350:350] = [end("a")]
    judged: list[str] = []

    def every_third(samples: Sequence[Sample], headers: Sequence[ImageHeader]) -> np.ndarray:
        judged.extend(one.key for one in samples)
        assert all(header.width for header in headers)
        return np.array([int(one.key) % 3 == 0 for one in samples])

    batches = list(fill_batches([*stream, end("b")], 32, Limits(), prefilter=every_third))
    samples = [one for batch in batches for one in batch.samples]
    headers = [one for batch in batches for one in batch.headers]
    rows = [(s.key, h.status, h.route) for s, h in zip(samples, headers, strict=True)]
    assert [key for key, _, _ in rows] == [str(i) for i in range(2500)]
    assert judged == [str(i) for i in range(2500) if i % 7]
    for key, status, route in rows:
        number = int(key)
        if number % 7 == 0:
            assert status is Status.UNDECODABLE
        else:
            assert (status is Status.OK) == (number % 3 == 0) == (route is not Route.NOBODY)
            assert status in (Status.OK, Status.FILTERED)
    images = [sum(h.route is not Route.NOBODY for h in batch.headers) for batch in batches]
    assert images[:-1] == [32] * (len(images) - 1)
    ended = [(e.shard.name, s[-1].key) for batch in batches for s in [batch.samples] for e in batch.ended]
    assert [name for name, _ in ended] == ["a", "b"]
    assert int(ended[0][1]) >= 349


def test_a_prefilter_that_leaves_little_still_fills_a_batch() -> None:
    stream = [sample(str(i), GOOD) for i in range(120)]
    rare = lambda samples, headers: np.array([int(one.key) % 60 == 0 for one in samples])  # noqa: E731
    first, second = fill_batches(stream, 2, Limits(), prefilter=rare)
    assert (len(first.samples), len(second.samples)) == (61, 59)


def test_a_prefilter_reads_ahead_within_the_bound() -> None:
    """A batch in the making and what waits for its judgement: no more is read than two batches."""
    read: list[int] = []

    def stream() -> Iterator[Sample]:
        for number in range(100):
            read.append(number)
            yield sample(str(number), GOOD)

    size = len(GOOD) + 2
    keep = lambda samples, headers: np.ones(len(samples), np.bool_)  # noqa: E731
    given = 0
    for batch in fill_batches(stream(), 64, Limits(), 5 * size, prefilter=keep):
        given += len(batch.samples)
        assert len(batch.samples) <= 5
        assert len(read) - given <= 7
    assert given == 100


def test_an_empty_shard_is_a_batch_of_its_end_and_an_empty_stream_is_none() -> None:
    (batch,) = fill([end()], 2)
    assert (batch.samples, len(batch.ended)) == ((), 1)
    assert fill([], 2) == []


@pytest.mark.parametrize("status", [Status.TRUNCATED, Status.MISSING_IMAGE])
def test_what_the_reader_found_wrong_stands(status: Status) -> None:
    header = check(sample("a", GOOD, status), Limits())
    assert (header.status, header.route) == (status, Route.NOBODY)
    assert check(sample("a", GOOD), Limits()).status is Status.OK


def test_batches_come_as_soon_as_they_are_full() -> None:
    taken = 0

    def source() -> Iterator[Sample | ShardEnd]:
        nonlocal taken
        for i in range(9):
            taken += 1
            yield sample(str(i), GOOD)

    next(fill_batches(source(), 3, Limits()))
    assert taken == 4  # the fourth sample shows that no shard end follows the third


def sizes(images: list[int], max_bytes: int, in_flight: int) -> list[list[int]]:
    """The sizes of the images in each batch."""
    stream = [sample("", b"x" * size) for size in images]
    batches = fill_batches(stream, 8, Limits(), max_bytes, in_flight)
    return [[len(one.image or b"") for one in batch.samples] for batch in batches]


def test_batches_end_at_their_bytes() -> None:
    assert sizes([40, 40, 40, 100, 10], 100, 4) == [[40, 40], [40], [100], [10]]


def test_views_weigh_as_much_as_the_buffer_that_they_keep_in_memory() -> None:
    """Two samples lie in each part of a tar, between members that are left out."""
    parts = [memoryview(bytes(1000)) for _ in range(4)]
    views = [part[at : at + 10] for part in parts for at in (0, 500)]
    stream = [sample("", b"")._replace(image=None, entries=(view,)) for view in views]
    assert [len(batch.samples) for batch in fill_batches(stream, 8, Limits(), 2500)] == [4, 4]


def test_keys_and_sidecars_weigh_too() -> None:
    stream = [sample("k" * 400, b"x" * 300)._replace(sidecar=bytes(300)) for _ in range(4)]
    assert [len(batch.samples) for batch in fill_batches(stream, 8, Limits(), 2500)] == [2, 2]


def test_a_giant_waits_until_the_budget_has_room_for_it() -> None:
    found = sizes([90, 90, 90, 210, 90, 90, 90], 100, 4)
    assert found == [[90], [90], [90], [], [210], [90], [90], [], [90]]


def test_a_giant_above_the_whole_budget_goes_alone() -> None:
    assert sizes([50, 900, 50], 100, 3) == [[50], [], [], [900], [], [], [50]]


@pytest.mark.parametrize("in_flight", [1, 2, 5, 14])
def test_batches_in_flight_stay_within_the_budget_whatever_comes(in_flight: int) -> None:
    rng = np.random.default_rng(in_flight)
    images = [int(size) for size in np.where(rng.random(400) < 0.1, rng.integers(1, 2000, 400), 30)]
    batches = sizes(images, 100, in_flight)
    assert [size for batch in batches for size in batch] == images
    held = [sum(batch) for batch in batches]
    for first in range(len(held)):
        window = held[first : first + in_flight]
        assert sum(window) <= 100 * in_flight or [size for size in window if size] == [max(window)]
    assert held.count(0) < 100 * in_flight
