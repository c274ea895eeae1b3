"""How the images of a batch are divided among runs of the DALI graph."""

from __future__ import annotations

from collections.abc import Sequence

from dali_aesthetic.types import ImageHeader, Route

_CALM = 32


class Chunker:
    """Divides batches into chunks, bounded in images and in decoded bytes.

    One image that raises costs its whole chunk a second decode, so a chunk that failed halves the next
    ones (not below `fewest_images`), and 32 good ones in a row double them again.
    """

    def __init__(self, most_images: int, most_bytes: int, fewest_images: int) -> None:
        self._most_images, self._most_bytes = most_images, most_bytes
        self._fewest_images = min(fewest_images, most_images)
        self._images = most_images
        self._good_in_a_row = 0

    @property
    def images(self) -> int:
        """The most images that the next chunk may have."""
        return self._images

    def divide(self, headers: Sequence[ImageHeader]) -> list[list[int]]:
        """The rows that DALI decodes, in order. An image above the bytes' bound is a chunk of its own."""
        chunks: list[list[int]] = []
        room = 0
        for row, header in enumerate(headers):
            if header.route is not Route.DALI:
                continue
            size = 3 * header.width * header.height
            if not chunks or len(chunks[-1]) == self._images or size > room:
                chunks.append([])
                room = self._most_bytes
            chunks[-1].append(row)
            room -= size
        return chunks

    def failed(self) -> None:
        """A chunk raised."""
        self._good_in_a_row = 0
        self._images = max(self._fewest_images, self._images // 2)

    def passed(self) -> None:
        """A chunk came through."""
        self._good_in_a_row += 1
        if self._good_in_a_row % _CALM == 0:
            self._images = min(self._most_images, 2 * self._images)
