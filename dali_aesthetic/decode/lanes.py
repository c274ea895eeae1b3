"""Several DALI pipelines side by side, fed from one source and read in the order they were fed."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from dali_aesthetic.decode.graph import Feed, Source


class Lanes:
    """`num_lanes` pipelines over one `source`.

    Beside a busy encoder a pipeline's short kernels wait for the long ones to end, and each pipeline decodes
    one chunk at a time: a second one uses the same gaps again. `build` makes a pipeline over a source.
    """

    def __init__(self, source: Source, build: Callable[[Source], Any], num_lanes: int) -> None:
        self._source = source
        self._fed: deque[int] = deque()
        self._pipelines = [build(self._feeding(lane)) for lane in range(num_lanes)]

    def start(self) -> None:
        """Begin a new stream of chunks; each pipeline takes its first ones from the source."""
        for pipeline in self._pipelines:
            pipeline.reset()
        for pipeline in self._pipelines:
            pipeline.schedule_run()

    @contextlib.contextmanager
    def oldest(self) -> Iterator[Any]:
        """The TensorList of the chunk fed first among those not read yet; its pipeline then takes another.

        Raises RuntimeError where DALI could not decode the chunk.
        """
        pipeline = self._pipelines[self._fed.popleft()]
        try:
            (images,) = pipeline.share_outputs()
            yield images
        finally:
            pipeline.release_outputs()
            pipeline.schedule_run()

    def drain(self) -> None:
        """Leave the pipelines empty; the source must have ended."""
        while self._fed:
            with contextlib.suppress(RuntimeError), self.oldest():
                pass
        for pipeline in self._pipelines:
            pipeline.schedule_run()

    def _feeding(self, lane: int) -> Source:
        def feed() -> Feed:
            chunk = self._source()
            self._fed.append(lane)
            return chunk

        return feed
