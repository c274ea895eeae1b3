"""The records that pass between stages: immutable, no logic.

A batch makes four hops: `EncodedBatch` (host bytes and keys) -> `ImageBatch` (pixels on the device)
-> `PendingScores` (launched, not waited for) -> `ScoredBatch` (host scores) -> the writers.
Records that exist for every sample are named tuples: a frozen dataclass takes four times as long to make.

Shape legend: N images of a batch (padded to the batch size), R rows of a batch (every input sample,
scored or not), H heads, D embedding, S pixels of the encoder's square input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Buffer = memoryview | bytes
"""Bytes, without a copy where possible: a view of a part of a shard (unsigned), or a file read whole."""


class ConfigError(ValueError):
    """A run that can't be: its configuration, its input or its output. The message says what to change."""


class Status(StrEnum):
    """The closed set of outcomes of a sample."""

    OK = "ok"
    TRUNCATED = "truncated"
    UNDECODABLE = "undecodable"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    EMPTY = "empty"
    MISSING_IMAGE = "missing_image"
    FILTERED = "filtered"
    """Left out before decoding, as was asked for: neither good nor bad."""


class Route(StrEnum):
    """The decoder of an image."""

    DALI = "dali"
    PILLOW = "pillow"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One unit of reading, of work and of commit.

    `name` is the output name without extension, made from the input alone (never from a rank) and
    free of `..`; it may hold `/` where input shards of several folders share a stem. `source` is a
    tar's path or URL, or the root of a folder of images; then `files` are the paths below the root
    that belong to this shard (images and sidecars), and `fingerprint` names that very list. `column` is the
    one of a Parquet file that holds the images, where it isn't to be found by type and name. `warnings` are
    oddities of the whole input, which the first shard carries.
    """

    index: int
    name: str
    kind: Literal["tar", "folder", "parquet"]
    source: str
    files: tuple[str, ...] = ()
    fingerprint: str = ""
    column: str = ""
    warnings: tuple[str, ...] = ()


class Sample(NamedTuple):
    """One input sample: its key, its image's bytes, and its tar entries ready to be written.

    `entries`, concatenated, are the sample's tar entries (headers, data, padding) byte for byte; a row of a
    Parquet file has none.
    `source` and `offset` say where it came from: the tar and the offset of its first header, the image file
    and 0, or the Parquet file and the row. `sidecar` is the sample's json member. A sample that the reader
    already knows to be bad (no image, cut off) has a `status` other than ok and a `message`. `files` are an
    image file and its sidecars, as paths below the shard's root, with their bytes.
    """

    shard: Shard
    key: str
    image: Buffer | None
    entries: tuple[Buffer, ...]
    source: str
    offset: int
    sidecar: Buffer | None = None
    status: Status = Status.OK
    message: str = ""
    files: tuple[tuple[str, Buffer], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEnd:
    """Follows a shard's last sample.

    `damage` says where and why reading stopped early, or is empty; what came before it stands.
    `error` is set instead where nothing of the shard is to be committed. `warnings` are oddities
    that fail nothing (a key that came twice, an entry left out).
    """

    shard: Shard
    damage: str = ""
    error: str = ""
    warnings: tuple[str, ...] = ()


class ScanHeader(NamedTuple):
    """What a JPEG states of its first scan, whose data begin at byte `start`.

    `interval` is the restart interval (0: none). `content` is the scan header's, `tables` that of the DHT
    segments.
    """

    start: int
    interval: int
    content: bytes
    tables: bytes


class ImageHeader(NamedTuple):
    """The result of the header check, without decoding. Width and height are 0 where unknown.

    They are the stored image's, before any turning. `orientation` is EXIF's, 1 (upright) to 8, or 0 where
    the header check can't tell. `layout` is a sequential JPEG's sampling factors, a byte a component: what
    the hardware decoder must see alike in a batch. It is empty for everything else. `scan` is there for a
    sequential JPEG of one scan in Huffman's code.
    """

    format: str
    width: int
    height: int
    route: Route
    status: Status = Status.OK
    message: str = ""
    orientation: int = 1
    layout: bytes = b""
    scan: ScanHeader | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBatch:
    """Up to one batch of images still encoded, with every sample that came between them.

    `samples` and `headers` are parallel, in input order, and may span shards. At most a batch of them
    have a route; the others are bad already. `ended` are the shards whose last sample is in this batch
    or an earlier one.
    """

    samples: tuple[Sample, ...]
    headers: tuple[ImageHeader, ...]
    ended: tuple[ShardEnd, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Pixels on the device.

    `images_NHWC` is uint8 RGB, [N, S, S, 3], padded to the batch size; its first `len(rows_N)` images
    are real, image i being the sample at `rows_N[i]`. `headers` are the batch's headers with what
    decoding found out (a sample that no decoder could read is no longer ok). For `--profile` there are the
    same images whole, `whole_NPPC`, and what their bytes tell, `facts_R` of `layout.PROFILE`.
    """

    encoded: EncodedBatch
    headers: tuple[ImageHeader, ...]
    images_NHWC: torch.Tensor
    rows_N: npt.NDArray[np.int64]
    whole_NPPC: torch.Tensor | None = None
    facts_R: npt.NDArray[np.void] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """Scores on the host: `scores_RH` float32 [R, H] on each head's own scale, NaN where not scored.

    `embeddings_RD` are the L2-normalised embeddings where they were asked for, 0 where not scored.
    `profile_R` are the columns of `layout.PROFILE` where they were asked for.
    """

    encoded: EncodedBatch
    headers: tuple[ImageHeader, ...]
    scores_RH: npt.NDArray[np.float32]
    embeddings_RD: npt.NDArray[np.float16] | None = None
    profile_R: npt.NDArray[np.void] | None = None


@dataclass(frozen=True, slots=True)
class PendingScores:
    """A batch launched on the device; `wait()` blocks for its scores and frees its device buffers."""

    wait: Callable[[], ScoredBatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """The content of `stats/NAME.json`: what was committed of one shard, or why nothing was.

    `statuses` counts the samples by status and adds up to `num_samples`. `removed` has, for the threshold and
    each part of a condition, the scored samples that it removes alone and after the parts before it. `error`
    is set for a shard that was not committed. There are no times in it: a rerun must give the same bytes.
    """

    name: str
    source: str
    num_samples: int = 0
    num_kept: int = 0
    statuses: Mapping[str, int] = field(default_factory=dict)
    bytes_kept: int = 0
    num_quarantined: int = 0
    removed: Sequence[tuple[str, int, int]] = ()
    damage: str = ""
    error: str = ""
    warnings: tuple[str, ...] = ()
    fingerprint: str = ""
