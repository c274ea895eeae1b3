"""Chunks: bounded in images and bytes, smaller after damage, large again after calm."""

from __future__ import annotations

from dali_aesthetic.decode.decoder import Chunker
from dali_aesthetic.types import ImageHeader, Route


def headers(*sizes: tuple[int, int], route: Route = Route.DALI) -> list[ImageHeader]:
    return [ImageHeader(format="jpeg", width=w, height=h, route=route) for w, h in sizes]


def test_chunks_hold_at_most_so_many_images() -> None:
    assert Chunker(3, 10**9, 8).divide(headers(*[(10, 10)] * 7)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert Chunker(3, 10**9, 8).divide([]) == []


def test_chunks_hold_at_most_so_many_bytes_but_at_least_an_image() -> None:
    sizes = [(10, 10), (10, 10), (10, 10), (100, 100), (10, 10)]
    assert Chunker(64, 650, 8).divide(headers(*sizes)) == [[0, 1], [2], [3], [4]]


def test_only_dalis_rows_are_in_chunks() -> None:
    mixed = headers((1, 1)) + headers((1, 1), route=Route.PILLOW) + headers((1, 1), route=Route.NOBODY)
    assert Chunker(64, 10**9, 8).divide(mixed + headers((1, 1))) == [[0, 3]]


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
