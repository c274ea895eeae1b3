"""DALI pipelines: the graph (encoded bytes and regions in, uint8 RGB squares out), lanes of them, the retry.

One region resize with the reference's integer geometry and uint8 output differs from PIL by 0.15/255 on
average (`resize_shorter` + centre crop: 3.7/255), but by up to 2.8 on line art, because PIL rounds to uint8
and clips between its horizontal and its vertical pass. Two resizes do the same and leave 0.004/255: nearly
every byte is equal. They cost up to 15% of the decoding rate on a GPU, where decoding is not the bottleneck,
and 60% on a CPU, where decoding takes a hundredth of a ViT-L/14's time.
EXIF orientation is ignored, as in the reference, unless asked for. `jpeg_fancy_upsampling=True` because the
hardware decoder otherwise replicates chroma."""

from __future__ import annotations

import contextlib
import io
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dali_aesthetic.config import ConfigError
from dali_aesthetic.decode.geometry import resize_steps
from dali_aesthetic.decode.handoff import to_torch

Arrays = list[npt.NDArray[Any]]
Feed = tuple[Arrays, *tuple[npt.NDArray[np.float32], ...]]
"""A batch: encoded images (uint8 [bytes] each) or, for a lane of `PIXELS`, RGB (uint8 [height, width, 3]),
then float32 [n, 2] arrays as `geometry.resize_steps` gives them: for both resizes their output size and their
region's first and last corners, as (y, x) in pixels."""
Source = Callable[[], Feed]
"""Returns the next batch."""
CPU, PIXELS = b"", b"pixels"
"""The layouts of what DALI decodes on the CPU, and of what comes decoded."""
_NUM_REGIONS = 6
_CPU_DEPTH = 2
"""Chunks ahead in a lane of pixels in host memory."""
PIECE = 16
"""Images in a chunk that is decoded again."""
_NAMED = re.compile(r"Failed to decode sample #(\d+)")


def is_engines(layout: bytes) -> bool:
    """Whether a GPU's JPEG engine decodes what has this layout."""
    return layout not in (CPU, PIXELS)


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


def has_jpeg_engine(device: torch.device) -> bool:
    """Whether this GPU has a JPEG engine, as its driver says; True where the driver can't be asked."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return True
    try:
        pynvml.nvmlDeviceGetJpgUtilization(handle)
    except pynvml.NVMLError:
        return False
    return True


def build_pipeline(
    source: Source,
    *,
    max_batch: int,
    num_threads: int,
    device_id: int | None,
    prefetch: int,
    apply_exif: bool = False,
    by_engine: bool = True,
    decoded: bool = False,
    whole_side: int = 0,
) -> Any:
    """A built DALI pipeline with its output on the GPU `device_id`, or on the CPU where that is None.

    On a GPU JPEGs are decoded by its JPEG engine, or, without `by_engine`, all images by the CPU. Images that
    are `decoded` are resized only. With `whole_side` there is a second output, uint8 [n, P, P, 3]: the whole
    images, stretched to that side.

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
    ndims = [3 if decoded else 1] + [1] * _NUM_REGIONS
    with pipeline:
        data, *regions = fn.external_source(
            source=source, num_outputs=len(dtypes), batch=True, no_copy=True, dtype=dtypes, ndim=ndims
        )
        if decoded:
            images = fn.reshape(data, layout="HWC")
        else:
            by_engine = by_engine and device_id is not None
            images = _decode(fn, data, types.DALIImageType.RGB, by_engine, apply_exif)
        if device_id is not None and (decoded or not by_engine):
            images = images.gpu()
        cubic = {"interp_type": types.DALIInterpType.INTERP_CUBIC, "antialias": True}
        whole = [fn.resize(images, size=(whole_side, whole_side), **cubic)] if whole_side else []
        for first in range(0, _NUM_REGIONS, 3):
            size, start, end = regions[first : first + 3]
            images = fn.resize(
                images,
                size=size,
                roi_start=start,
                roi_end=end,
                **cubic,
            )
        pipeline.set_outputs(images, *whole)
    pipeline.build()
    return pipeline


def _decode(fn: Any, data: Any, output_type: Any, by_engine: bool, apply_exif: bool) -> Any:
    same = {"output_type": output_type, "adjust_orientation": apply_exif, "jpeg_fancy_upsampling": True}
    if not by_engine:
        return fn.decoders.image(data, device="cpu", **same)
    # Load 1.0 sends every image that the hardware supports there: the pixels don't depend on an image's
    # place in the batch, and decoding takes no SM time from the encoder.
    return fn.decoders.image(data, device="mixed", hw_decoder_load=1.0, **same)


class Lane:
    """A pipeline that decodes chunks in the order they are submitted, `depth` of them ahead.

    `build` makes it over a source, of images that are `decoded` or not. The JPEG engine takes no more images
    of any chunk than the first chunk had; the rest would be decoded by the GPU's other units, with other
    bits. So the first ones are full.
    """

    def __init__(
        self, build: Callable[[Source], Any], max_batch: int, depth: int, *, decoded: bool = False
    ) -> None:
        self._depth, self._running = depth, 0
        self._waiting = deque([_blank(max_batch, decoded)] * depth)
        self._pipeline = build(lambda: self._waiting.popleft())
        self._pipeline.schedule_run()  # the first time it takes `depth` chunks, and one from then on
        for _ in range(depth):
            self._pipeline.share_outputs()
            self._pipeline.release_outputs()

    def __len__(self) -> int:
        """Chunks submitted and not read."""
        return len(self._waiting) + self._running

    def submit(self, feed: Feed) -> None:
        """Queue a chunk."""
        self._waiting.append(feed)
        self._schedule()

    @contextlib.contextmanager
    def oldest(self) -> Iterator[Any]:
        """The outputs, TensorLists, of the chunk submitted first among those not read yet.

        Raises RuntimeError where DALI could not decode the chunk.
        """
        try:
            yield self._pipeline.share_outputs()
        finally:
            self._pipeline.release_outputs()
            self._running -= 1
            self._schedule()

    def drain(self) -> None:
        """Drop what was submitted and not read."""
        self._waiting.clear()
        while self._running:
            with contextlib.suppress(RuntimeError), self.oldest():
                pass

    def _schedule(self) -> None:
        while self._waiting and self._running < self._depth:
            self._pipeline.schedule_run()
            self._running += 1


def _blank(count: int, decoded: bool) -> Feed:
    image = np.zeros((16, 16, 3), np.uint8) if decoded else np.frombuffer(blank_jpeg(), np.uint8)
    return [image] * count, *resize_steps([(16, 16)] * count, 1)


def blank_jpeg(restart_rows: int = 0) -> bytes:
    """A black 4:2:0 JPEG of one MCU, or of one more than there are restart intervals between them."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16 * (1 + restart_rows))).save(buffer, "JPEG", restart_marker_rows=restart_rows)
    return buffer.getvalue()


class Lanes:
    """Lanes of one layout each, opened as chunks of the layout come.

    The JPEG engine's buffers are made anew when the layout changes, which waits for all that runs on the GPU,
    the encoder included. Beside a busy encoder an H200 decoded two layouts at 1,900 to 2,300 images/s where
    lanes took chunks of both, and at 11,700 to 12,200 in a lane each. `build` makes a pipeline of a layout
    and a depth over a source.
    """

    def __init__(
        self, build: Callable[[Source, bytes, int], Any], max_batch: int, depth: int, most: int
    ) -> None:
        self._build, self._max_batch, self._depth, self._most = build, max_batch, depth, most
        self._lanes: defaultdict[bytes, list[Lane]] = defaultdict(list)

    def open(self, layout: bytes) -> Lane:
        """One more lane of the layout."""
        depth = self._depth if is_engines(layout) else min(self._depth, _CPU_DEPTH)
        lane = Lane(
            lambda source: self._build(source, layout, depth),
            self._max_batch,
            depth,
            decoded=layout == PIXELS,
        )
        self._lanes[layout].append(lane)
        return lane

    def submit(self, feed: Feed, layout: bytes) -> Lane:
        """Queue a chunk in a lane of its layout; returns the lane.

        A pipeline decodes one chunk at a time, and beside a busy encoder its short kernels wait for the
        encoder's long ones: `most` lanes fill the same gaps (16,700 images/s of one layout, one lane 8,600).
        With four lanes of the engine at work its rate broke down, so layouts that come together have one.
        """
        most = 1 if is_engines(layout) and self._engine_is_shared(layout) else self._most
        lane = min(self._lanes[layout][:most], key=len, default=None)
        if lane is None or (len(lane) >= self._depth and len(self._lanes[layout]) < most):
            lane = self.open(layout)
        lane.submit(feed)
        return lane

    def _engine_is_shared(self, layout: bytes) -> bool:
        others = (lanes for one, lanes in self._lanes.items() if is_engines(one) and one != layout)
        return any(len(lane) for lanes in others for lane in lanes)

    def drain(self) -> None:
        """Drop what was submitted and not read."""
        for lanes in self._lanes.values():
            for lane in lanes:
                lane.drain()


class Retry:
    """Decodes rows in pieces, leaving out what DALI can't decode, through a lane of its own.

    `build` makes a pipeline over a source for pieces of up to `PIECE` images; it is called when the first
    chunk raises, so that a run without damage doesn't pay for it.
    """

    def __init__(self, build: Callable[[Source], Any]) -> None:
        self._build = build
        self._lane: Lane | None = None

    def decode(
        self, rows: list[int], feed_of: Callable[[list[int]], Feed]
    ) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
        """Yields rows with the pipeline's outputs; a row that is never yielded did not decode."""
        if self._lane is None:
            self._lane = Lane(self._build, PIECE, 1)
        lane = self._lane
        pieces = [rows[start : start + PIECE] for start in range(0, len(rows), PIECE)][::-1]
        while pieces:
            piece = pieces.pop()
            lane.submit(feed_of(piece))
            try:
                with lane.oldest() as outputs:
                    parts = [to_torch(output) for output in outputs]
            except RuntimeError as error:
                pieces += _smaller(piece, str(error))
            else:
                yield piece, parts


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
