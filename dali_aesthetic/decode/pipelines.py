"""DALI pipelines: the graph (encoded bytes and regions in, uint8 RGB squares out), its lanes, the retry.

One region resize with the reference's integer geometry and uint8 output differs from PIL by 0.15/255 on
average (`resize_shorter` + centre crop: 3.7/255), but by up to 2.8 on line art, because PIL rounds to uint8
and clips between its horizontal and its vertical pass. Two resizes do the same and leave 0.004/255: nearly
every byte is equal. They cost up to 15% of the decoding rate on a GPU, where decoding is not the bottleneck,
and 60% on a CPU, where decoding takes a hundredth of a ViT-L/14's time.
EXIF orientation is ignored, as in the reference, unless asked for. `jpeg_fancy_upsampling=True` because the
hardware decoder otherwise replicates chroma."""

from __future__ import annotations

import contextlib
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dali_aesthetic.config import ConfigError
from dali_aesthetic.decode.handoff import to_torch

Arrays = list[npt.NDArray[Any]]
Feed = tuple[Arrays, *tuple[npt.NDArray[np.float32], ...]]
"""A batch: encoded images (uint8 [bytes] each), then float32 [n, 2] arrays as `geometry.resize_steps` gives
them: for both resizes their output size and their region's first and last corners, as (y, x) in pixels."""
Source = Callable[[], Feed]
"""Returns the next batch, or raises StopIteration at the end. It raises nothing else: another exception would
surface out of order, before batches that are already finished."""
_NUM_REGIONS = 6
PIECE = 16
"""Images in a chunk that is decoded again."""
_NAMED = re.compile(r"Failed to decode sample #(\d+)")


def import_dali() -> None:
    """Imports DALI, which takes a second: `build_pipeline` then finds it there.

    Raises ConfigError where it isn't installed.
    """
    try:
        from nvidia.dali import fn, pipeline, types  # noqa: F401
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("nvidia"):  # DALI is there, what it needs itself is not
            raise
        raise ConfigError(
            f"decoding needs NVIDIA DALI ({error}), with or without a GPU: in the clone, "
            "pip install '.[cuda13]' for a driver from 580 up, else pip install '.[cuda12]'; "
            "where pip says that it is there, pip uninstall nvidia-dali-cuda120 nvidia-dali-cuda130 first"
        ) from None


def build_pipeline(
    source: Source,
    *,
    max_batch: int,
    num_threads: int,
    device_id: int | None,
    prefetch: int,
    apply_exif: bool = False,
) -> Any:
    """A built DALI pipeline, decoding on the GPU `device_id`, or on the CPU where that is None.

    The dynamic executor is required: with it a batch that raises loses only itself and the pipeline goes
    on; without it every later batch is lost. `no_copy` feeds views as they are; DALI holds a
    reference to each until its batch is done. Output: uint8 [n, S, S, 3] (RGB). Raises as `import_dali` does.
    """
    import_dali()
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(
        batch_size=max_batch,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
        exec_dynamic=True,
    )
    dtypes = [types.DALIDataType.UINT8] + [types.DALIDataType.FLOAT] * _NUM_REGIONS
    with pipeline:
        data, *regions = fn.external_source(
            source=source, num_outputs=1 + _NUM_REGIONS, batch=True, no_copy=True, dtype=dtypes, ndim=1
        )
        images = _decode(fn, data, types.DALIImageType.RGB, device_id, apply_exif)
        for first in range(0, _NUM_REGIONS, 3):
            size, start, end = regions[first : first + 3]
            images = fn.resize(
                images,
                size=size,
                roi_start=start,
                roi_end=end,
                interp_type=types.DALIInterpType.INTERP_CUBIC,
                antialias=True,
            )
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline


def _decode(fn: Any, data: Any, output_type: Any, device_id: int | None, apply_exif: bool) -> Any:
    same = {"output_type": output_type, "adjust_orientation": apply_exif, "jpeg_fancy_upsampling": True}
    if device_id is None:
        return fn.decoders.image(data, device="cpu", **same)
    # Load 1.0 sends every image that the hardware supports there: the pixels don't depend on an image's
    # place in the batch, and decoding takes no SM time from the encoder.
    return fn.decoders.image(data, device="mixed", hw_decoder_load=1.0, **same)


class Lanes:
    """`num_lanes` pipelines over one `source`.

    Beside a busy encoder a pipeline's short kernels wait for the encoder's long ones, and a pipeline decodes
    one chunk at a time. A second pipeline fills the same gaps. `build` makes a pipeline over a source.
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
    """The rest of a piece that raised, the last part first: all but the row that `message` names.

    Where it names none (a PNG that is cut and has an end chunk), the halves: neighbours must stay with the
    same decoder, or the last bits of their pixels change.
    """
    if len(piece) == 1:
        return []
    named = _NAMED.search(message)
    if named is None or int(named[1]) >= len(piece):
        return [piece[len(piece) // 2 :], piece[: len(piece) // 2]]
    position = int(named[1])
    return [piece[:position] + piece[position + 1 :]]
