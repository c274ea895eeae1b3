"""The collector inside and outside of the loop."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from dali_aesthetic.overlap import ALLOCATIONS, calm_collector


class Node:
    def __init__(self) -> None:
        self.myself = self


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_it_collects_seldom_within_and_as_before_afterwards() -> None:
    before = gc.get_threshold()
    assert gc.get_freeze_count() == 0
    with calm_collector():
        assert gc.get_threshold()[0] == ALLOCATIONS
        frozen = gc.get_freeze_count()
        made_since = [Node() for _ in range(1000)]
        with calm_collector():  # other threads may free some of the frozen; a second freeze would add these
            assert frozen + len(made_since) > gc.get_freeze_count() > 10_000
        assert gc.get_threshold()[0] == ALLOCATIONS
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_cycles_of_a_long_loop_are_still_freed() -> None:
    with calm_collector():
        first = weakref.ref(Node())
        nodes = 0
        while first() is not None and nodes < 4 * ALLOCATIONS:
            Node()
            nodes += 1
    assert first() is None
    assert nodes <= 2 * ALLOCATIONS


def test_what_others_set_stays_set() -> None:
    gc.set_threshold(0, 10, 10)
    gc.freeze()
    with calm_collector():
        assert gc.get_threshold()[0] == 0
    assert gc.get_threshold()[0] == 0
    assert gc.get_freeze_count() > 0
