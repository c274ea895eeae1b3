"""A second try through DALI for a chunk that raised: the images that don't decode, told from the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from dali_aesthetic.decode.graph import Feed, Source
from dali_aesthetic.decode.handoff import to_torch

PIECE = 16
_NAMED = re.compile(r"Failed to decode sample #(\d+)")


class Retry:
    """Decodes rows in pieces, leaving out what DALI can't decode, through a pipeline of its own.

    `build` makes a pipeline over a source for pieces of up to `PIECE` images; it is called when the first
    chunk raises, so that a run without damage doesn't pay for it.
    """

    def __init__(self, build: Callable[[Source, int], Any]) -> None:
        self._build = build
        self._pipeline: Any = None
        self._feed: Feed | None = None

    def decode(
        self, rows: list[int], feed_of: Callable[[list[int]], Feed]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yields rows with their pixels [n, S, S, 3]; a row that is never yielded did not decode."""
        if self._pipeline is None:
            self._pipeline = self._build(self._next_feed, PIECE)
        pieces = [rows[start : start + PIECE] for start in range(0, len(rows), PIECE)][::-1]
        while pieces:
            piece = pieces.pop()
            self._feed = feed_of(piece)
            try:
                (images,) = self._pipeline.run()
                yield piece, to_torch(images)
            except RuntimeError as error:
                pieces += _smaller(piece, str(error))
            finally:
                self._feed = None  # it refers to the shard's bytes

    def _next_feed(self) -> Feed:
        if self._feed is None:
            raise StopIteration
        return self._feed


def _smaller(piece: list[int], message: str) -> list[list[int]]:
    """What is left of a piece that raised, the last part first: all but the row that `message` names.

    It names none for a PNG that is cut and ended, say: then the halves, as the rows beside it must not change
    decoders, and with them their pixels' last bits.
    """
    if len(piece) == 1:
        return []
    named = _NAMED.search(message)
    if named is None or int(named[1]) >= len(piece):
        return [piece[len(piece) // 2 :], piece[: len(piece) // 2]]
    position = int(named[1])
    return [piece[:position] + piece[position + 1 :]]
