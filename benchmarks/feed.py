"""The decoder beside a busy encoder: that rate bounds a run, not the rate of the decoder alone.

The package's decoder decodes batches that are in memory, and its pixels are dropped; the encoder encodes the
same pixels again and again. Two ways that the package avoids are measured too: the driver's default of 8
hardware queues, and the encoder replayed as a CUDA graph. Each way runs in a process of its own.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench import (
    Bench,
    decoding,
    encoded_batches,
    encoder_detail,
    first_pixels,
    make_bench,
)
from benchmarks.datasets import MIXTURES, title_of
from benchmarks.machine import GpuSampler
from benchmarks.processes import in_child
from benchmarks.results import Measured, Record
from benchmarks.settings import Settings
from dali_aesthetic.score.backends.backend import Backend
from dali_aesthetic.score.scorer import Scorer
from dali_aesthetic.types import ImageBatch

ALONE = "decode alone"
QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"
FEW_QUEUES, GRAPH = "8 hardware queues", "as a CUDA graph"
GPU_WAYS = (("torchscript", "fp16"), ("fused", "fp16"), ("fused", "fp8"))
CPU_WAYS = (("eager", "fp32"),)
NOTE = (
    "Images/s that the package's decoder delivers while an encoder is kept busy on the same device, three of "
    "its batches launched ahead. The limit is the decoder alone in the same process, on the same images. "
    "encoder_beside and encoder_alone: the encoder's images/s meanwhile, and without the decoder. cores: CPU "
    "cores that decoder and encoder keep busy together."
)
_BOUND_S = 60
AHEAD = 3
"""Batches launched and not yet done: a run has two in a queue and one or two in hand."""


@dataclass(slots=True)
class Fed:
    """Images/s of each window, and the start of the first one (seconds of `perf_counter`)."""

    rates: list[float] = field(default_factory=list)
    began: float = 0.0


def measure(settings: Settings) -> None:
    """The decoder beside a busy encoder, which can bound a run."""
    record = settings.record("feed")
    record.note("complete", measure_feed(record, settings))


def measure_feed(record: Record, settings: Settings) -> bool:
    """Every encoder that can run here: as in a run, with 8 queues, as a graph. Whether all of it is done."""
    record.note("note", NOTE)
    ways = (
        [(settings.backend, settings.precision)]
        if (settings.backend, settings.precision) != ("auto", "auto")
        else list(GPU_WAYS if settings.on_gpu else CPU_WAYS)
    )
    bound_s = _BOUND_S * (1 if settings.quick and settings.on_gpu else 10)
    ended = []
    for kind in MIXTURES:
        backend, precision = ways[-1]
        name = title(backend, precision, title_of(kind, 512))
        mixture = (name, backend, precision, "", kind)
        ended.append(in_child(measure_beside, record, settings, name, *mixture, bound_s=bound_s))
    for how in ("", FEW_QUEUES, GRAPH) if settings.on_gpu else ("",):
        for backend, precision in ways:
            name = title(backend, precision)
            if how and record.row(name) is None:
                continue  # it can't run here; the record has the reason
            name = title(backend, precision, how)
            env = {QUEUES: "8"} if how == FEW_QUEUES else None
            words = (name, backend, precision, how)
            ended.append(in_child(measure_beside, record, settings, name, *words, bound_s=bound_s, env=env))
    return all(ended)


def title(backend: str, precision: str, how: str = "") -> str:
    """The name of a row."""
    return f"decode beside {backend} {precision}" + (f", {how}" if how else "")


def measure_beside(
    record: Record, settings: Settings, name: str, backend: str, precision: str, how: str, kind: str = ""
) -> None:
    """Measure an encoder run in one way: encoder alone, decoder alone, both at once; of the usual images,
    or of a `kind`."""
    bench = make_bench(settings, backend=backend, precision=precision)
    images_NHWC, window_s = first_pixels(bench), bench.seconds / 2
    if how == GRAPH:
        bench.worker.scorer.backend = Replayed(bench.worker.scorer.backend, images_NHWC)
    pattern = (settings.datasets.make(kind),) if kind else bench.config.input
    batches = list(encoded_batches(bench, pattern))
    encoder_alone = alone_rate(bench, images_NHWC)
    with decoding(bench, cycle(batches)) as decoded:
        decoder_alone = take(decoded, window_s, bench.repeats)
    if not (kind or record.has(ALONE)):
        record.add(Measured(name=ALONE, values=decoder_alone.rates, detail=_around()))
    # The encoder starts before the first batch is fed and stops before the decoder is drained.
    with (
        decoding(bench, cycle(batches)) as decoded,
        GpuSampler(bench.device) as gpu,
        BusyEncoder(bench.worker.scorer, images_NHWC) as encoder,
    ):
        cpu_s, start = time.process_time(), time.perf_counter()
        fed = take(decoded, window_s, bench.repeats)
        cores = (time.process_time() - cpu_s) / (time.perf_counter() - start)
        beside = encoder.rate(fed.began)
    detail = {
        **encoder_detail(bench),
        **_around(),
        "encoder_beside": round(beside, 1),
        "encoder_alone": round(encoder_alone, 1),
        "encoder_share": round(beside / encoder_alone, 4),
        "cores": round(cores, 1),
    }
    limit = statistics.median(decoder_alone.rates)
    record.add(Measured(name=name, values=fed.rates, limit=limit, detail=detail, gpu=gpu.medians()))


def alone_rate(bench: Bench, images_NHWC: Tensor) -> float:
    """Images/s of the busy encoder alone."""
    with BusyEncoder(bench.worker.scorer, images_NHWC) as encoder:
        time.sleep(bench.seconds)
    return encoder.rate()


def take(decoded: Iterator[ImageBatch], seconds: float, windows: int) -> Fed:
    """Images/s by window of about `seconds`, each a whole number of batches.

    The first batch doesn't count: the decoder was idle before it.
    """
    fed = Fed()
    next(decoded)
    fed.began = start = time.perf_counter()
    count = 0
    while len(fed.rates) < windows:
        count += len(next(decoded).rows_N)
        if (elapsed := time.perf_counter() - start) >= seconds:
            fed.rates.append(count / elapsed)
            start, count = time.perf_counter(), 0
    return fed


def _around() -> dict[str, Any]:
    """The number of hardware queues, if it is set."""
    return {"hardware_queues": int(os.environ[QUEUES])} if QUEUES in os.environ else {}


class BusyEncoder:
    """Encodes the same pixels in a thread while its block runs, on the scorer's stream, `AHEAD` ahead."""

    def __init__(self, scorer: Scorer, images_NHWC: Tensor) -> None:
        self._scorer, self._images_NHWC = scorer, images_NHWC
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._ended: list[float] = []
        self._thread = threading.Thread(target=self._work, name="busy encoder", daemon=True)

    def __enter__(self) -> BusyEncoder:
        """Return once the first batch is done. Raises what the encoder raised."""
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
        """Images/s between the ends of the first and the last batch after `since`, a time of `perf_counter`.

        With fewer than three batches after `since`, of all batches so far.
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
        except BaseException as error:  # raised again by the thread that runs the block
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
    """A backend replayed as a CUDA graph, which the package doesn't do. Has the interface of `Backend`."""

    def __init__(self, backend: Backend, images_NHWC: Tensor) -> None:
        """Capture the encoding of these pixels."""
        self.name, self.precision = backend.name, backend.precision
        self.spec, self.head_names = backend.spec, backend.head_names
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles; that must not be captured
                backend(images_NHWC)
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the decoder's threads may call CUDA during the capture.
        capture: Any = torch.cuda.graph(self._graph, capture_error_mode="thread_local")
        with capture:
            self._outputs = backend(images_NHWC)

    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and embeddings of the pixels of the capture; the argument is ignored."""
        self._graph.replay()
        return self._outputs
