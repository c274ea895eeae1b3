"""An encoder kept busy as by a run: on the scorer's own stream, a few batches launched ahead."""

from __future__ import annotations

import threading
import time
from collections import deque
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from dali_aesthetic.score.backends.backend import Backend
from dali_aesthetic.score.scorer import Scorer

AHEAD = 3
"""Batches launched and not ended: a run has two in a queue and one or two in hand."""


class BusyEncoder:
    """Encodes the same pixels again and again in a thread of its own while its block runs."""

    def __init__(self, scorer: Scorer, images_NHWC: Tensor) -> None:
        self._scorer, self._images_NHWC = scorer, images_NHWC
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._ended: list[float] = []
        self._thread = threading.Thread(target=self._work, name="busy encoder", daemon=True)

    def __enter__(self) -> BusyEncoder:
        """Returns when the first batch has ended. Raises what the encoder raised."""
        self._thread.start()
        while not self._ended and self._thread.is_alive():
            time.sleep(0.001)
        self._raise()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:
            self._raise()

    def rate(self, since: float = 0.0) -> float:
        """Images/s between the ends of the first and the last batch after `since` (`perf_counter`'s seconds).

        Where fewer than three ended, of all so far.
        """
        times = [end for end in self._ended if end >= since]
        times = times if len(times) > 2 else self._ended
        return (len(times) - 1) * len(self._images_NHWC) / max(times[-1] - times[0], 1e-9)

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            with torch.cuda.stream(self._scorer.stream):
                self._encode()
        except BaseException as error:  # passed on: the block's owner raises it
            self._failure = error

    def _encode(self) -> None:
        launched: deque[torch.cuda.Event] = deque()
        stream = self._scorer.stream
        while not self._stop.is_set() or len(self._ended) < 3:
            self._scorer.backend(self._images_NHWC)
            if stream is not None:
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(stream)
                launched.append(event)
                if len(launched) <= AHEAD:
                    continue
                launched.popleft().synchronize()
            self._ended.append(time.perf_counter())
        if stream is not None:
            stream.synchronize()


class Replayed:
    """A backend captured once and replayed as a CUDA graph, which the package does not do. See `Backend`."""

    def __init__(self, backend: Backend, images_NHWC: Tensor) -> None:
        """Captures the encoding of these very pixels."""
        self.name, self.precision = backend.name, backend.precision
        self.spec, self.head_names = backend.spec, backend.head_names
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            for _ in range(3):  # what is compiled in the first calls must not be captured
                backend(images_NHWC)
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # The decoder's threads may call CUDA meanwhile.
        capture: Any = torch.cuda.graph(self._graph, capture_error_mode="thread_local")
        with capture:
            self._outputs = backend(images_NHWC)

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """The scores and embeddings of the pixels that it was captured with, whatever it is given."""
        self._graph.replay()
        return self._outputs
