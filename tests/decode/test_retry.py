"""The retry: everything that decodes does, whatever DALI's message says or doesn't."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from dali_aesthetic.decode import pipelines as module
from dali_aesthetic.decode.pipelines import PIECE, Retry

ROWS = list(range(100, 140))


class Pipeline:
    """Decodes rows to their number; raises as DALI does while a bad row is in the feed."""

    def __init__(self, source: Callable[[], list[int]], bad: set[int], message: str) -> None:
        self.source, self.bad, self.message, self.runs = source, bad, message, 0

    def run(self) -> tuple[torch.Tensor]:
        self.runs += 1
        rows = self.source()
        assert 0 < len(rows) <= PIECE
        for position, row in enumerate(rows):
            if row in self.bad:
                raise RuntimeError(self.message.format(position))
        return (torch.tensor(rows, dtype=torch.uint8),)


NAMED = "Error in CPU operator ... encountered:\nFailed to decode sample #{} : \nCurrent pipeline object is"


def retried(
    bad: set[int], monkeypatch: pytest.MonkeyPatch, message: str = NAMED
) -> tuple[list[int], list[Pipeline]]:
    pipelines: list[Pipeline] = []

    def build(source: Callable[[], list[int]], most: int) -> Pipeline:
        assert most == PIECE
        pipelines.append(Pipeline(source, bad, message))
        return pipelines[-1]

    monkeypatch.setattr(module, "to_torch", lambda images: images)
    retry = Retry(build)  # type: ignore[arg-type]
    got: list[int] = []
    for _ in range(2):
        got = []
        for rows, images in retry.decode(ROWS, lambda rows: rows):  # type: ignore[arg-type, return-value]
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
