"""The scorer of the hot loop: it takes batches on the device and yields their pending scores.

Shape legend: N images of a batch (padded), R rows (every input sample), H heads, D embedding, S pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dali_aesthetic.layout import PROFILE_FLOATS
from dali_aesthetic.score.backends.backend import Backend
from dali_aesthetic.score.clip import pad_to
from dali_aesthetic.score.profile import pixel_profile
from dali_aesthetic.types import ImageBatch, PendingScores, ScoredBatch


class Scorer:
    """Scores batches on one device without waiting for it."""

    def __init__(
        self,
        backend: Backend,
        device: torch.device,
        batch_size: int,
        keep_embeddings: bool = False,
        padded: bool = True,
    ) -> None:
        """With `keep_embeddings` embeddings are copied to the host with the scores, normalised, as float16.

        `padded=False` is for a backend whose scores don't depend on the number of images: it gets no padding.
        """
        self.backend = backend
        self.padded = padded
        self.keep_embeddings = keep_embeddings
        self.device = device
        self.batch_size = batch_size
        # The default stream and every blocking stream of the process, such as the decoder's, wait for each
        # other: the encoder gets a stream of its own.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def image_size(self) -> int:
        """The side of the square that the encoder takes, in pixels."""
        return self.backend.spec.image_size

    @property
    def head_names(self) -> tuple[str, ...]:
        """The names of the H scores; the first decides what is kept."""
        return self.backend.head_names

    def score(self, batches: Iterable[ImageBatch]) -> Iterator[PendingScores]:
        """Launches each batch on the scorer's own stream; `wait()` of its result blocks until it is done."""
        for batch in batches:
            yield PendingScores(_Launched(self, batch).wait)

    def score_pixels(self, images_NHWC: Tensor) -> npt.NDArray[np.float32]:
        """Scores [N, H] of any number of images, uint8 RGB [N, S, S, 3] on any device. Blocks."""
        return self.embed_pixels(images_NHWC)[0]

    def embed_pixels(self, images_NHWC: Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float16]]:
        """Scores [N, H] as `score_pixels`, and normalised embeddings [N, D].

        Images are scored in padded batches of the scorer's own size, so that a score does not depend on the
        number of images of the call.
        """
        scores = [np.empty((0, len(self.head_names)), np.float32)]
        embeddings = [np.empty((0, self.backend.spec.embed_dim), np.float16)]
        if self.stream is not None:
            # The pixels may still be being computed.
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for start in range(0, len(images_NHWC), self.batch_size):
                chunk = images_NHWC[start : start + self.batch_size].to(self.device)
                whole = pad_to(self.batch_size, chunk) if self.padded else chunk
                scores_NH, embeddings_ND = self.backend(whole)
                scores.append(scores_NH[: len(chunk)].cpu().numpy())
                embeddings.append(_unit(embeddings_ND[: len(chunk)]).cpu().numpy())
        return np.concatenate(scores), np.concatenate(embeddings)


class _Launched:
    """A batch whose scores are being copied to the host."""

    def __init__(self, scorer: Scorer, batch: ImageBatch) -> None:
        self._num_heads = len(scorer.head_names)
        # DALI owns the pixels and knows nothing of torch's streams: once this reference is gone it may
        # overwrite them with the next batch, so it is held until the device has passed the event.
        self._batch: ImageBatch | None = batch
        self._host_NH: Tensor | None = None
        self._host_ND: Tensor | None = None
        self._profile: tuple[Tensor, Tensor] | None = None
        self._event: torch.cuda.Event | None = None
        if len(batch.rows_N):
            with torch.cuda.stream(scorer.stream):
                self._launch(scorer)

    def _launch(self, scorer: Scorer) -> None:
        assert self._batch is not None
        images_NHWC = self._batch.images_NHWC
        if not scorer.padded:
            images_NHWC = images_NHWC[: len(self._batch.rows_N)]
        scores_NH, embeddings_ND = scorer.backend(images_NHWC)
        self._host_NH = _to_host(scores_NH)
        if scorer.keep_embeddings:
            self._host_ND = _to_host(_unit(embeddings_ND))
        if self._batch.whole_NPPC is not None:
            values_N7, hash_N = pixel_profile(self._batch.whole_NPPC[: len(self._batch.rows_N)])
            self._profile = _to_host(values_N7), _to_host(hash_N)
        if scores_NH.device.type != "cuda":
            return
        # Blocking: waiting for a default event keeps a core busy until the batch has ended.
        self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(scores_NH.device))

    def wait(self) -> ScoredBatch:
        """Waits for the scores and releases the device buffers. Call it once."""
        if self._batch is None:
            raise RuntimeError("the scores of this batch were taken already")
        if self._event is not None:
            self._event.synchronize()
        batch, self._batch = self._batch, None
        scores_RH = np.full((len(batch.encoded.samples), self._num_heads), np.nan, np.float32)
        if self._host_NH is not None:
            scores_RH[batch.rows_N] = self._host_NH[: len(batch.rows_N)].numpy()
        embeddings_RD = None
        if self._host_ND is not None:
            embeddings_RD = np.zeros((len(scores_RH), self._host_ND.shape[1]), np.float16)
            embeddings_RD[batch.rows_N] = self._host_ND[: len(batch.rows_N)].numpy()
        profile_R = batch.facts_R
        if profile_R is not None and self._profile is not None:
            values_N7, hash_N = (part.numpy() for part in self._profile)
            for place, name in enumerate(PROFILE_FLOATS):
                profile_R[name][batch.rows_N] = values_N7[:, place]
            profile_R["phash"][batch.rows_N] = hash_N.view(np.uint64)
        self._host_NH = self._host_ND = self._profile = None
        return ScoredBatch(
            encoded=batch.encoded,
            headers=batch.headers,
            scores_RH=scores_RH,
            embeddings_RD=embeddings_RD,
            profile_R=profile_R,
        )


def _unit(embeddings_ND: Tensor) -> Tensor:
    return F.normalize(embeddings_ND.float(), dim=-1).half()


def _to_host(tensor: Tensor) -> Tensor:
    """A non-blocking copy to pinned memory; a tensor on the host is returned as it is."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
