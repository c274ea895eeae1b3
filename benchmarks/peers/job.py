"""Shared by peers: the job, its images and result, a gate for workers, fewer workers if memory runs out."""

from __future__ import annotations

import json
import os
import tarfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import nn

from dali_aesthetic.score.head import HeadMLP
from dali_aesthetic.score.spec import TowerSpec, spec_of
from dali_aesthetic.score.weights import load_head
from dali_aesthetic.shards.formats import IMAGE_RANK, extension

T = TypeVar("T")
_POLL_S = 0.02
_OVERFLOWS = ("CUDA out of memory", "CUDA allocation failed", "CUDA error: out of memory")


class Unavailable(RuntimeError):
    """The peer can't run here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Score every image of `tars` on `device`; if the peer can write, keep those of at least `cut`.

    All tars are the same file, and scores of the first are returned. `precision` is the one that a peer may
    choose (fp16 on a GPU); `backend`, `our_precision` and `batch_size` (0: the default) are this package's.
    `max_images` bounds a slow peer; a fast one may score more. Goes to the peer's process as JSON.
    """

    tars: tuple[str, ...]
    per_tar: int
    output: str
    device: str
    encoder: str
    weights: str
    head: str
    cut: float
    precision: str
    num_workers: int
    backend: str
    our_precision: str
    batch_size: int
    max_images: int

    @property
    def spec(self) -> TowerSpec:
        return spec_of(self.encoder)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.precision == "fp16" else torch.float32

    def head_layer(self) -> nn.Linear:
        """The head as one layer, on the device, float32."""
        head, _ = load_head(self.head, self.encoder, self.spec.embed_dim, None)
        return as_layer(head.mlp).to(self.device)

    def few_tars(self) -> tuple[str, ...]:
        """The tars that hold `max_images`, at least one."""
        return self.tars[: max(1, self.max_images // self.per_tar)]

    def warm_tars(self) -> tuple[str, ...]:
        """The tars of a fast program's warm-up: one for each core."""
        return self.few_tars()[: self.num_workers]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Self:
        fields = json.loads(path.read_text())
        return cls(**{**fields, "tars": tuple(fields["tars"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerResult:
    """`num_images` in `seconds`, from models loaded and warmed up to the last result written or in memory.

    `num_images` counts images that got a score. `scores` are the first tar's, by key. `settings` are those it
    was tuned with, `writes` describes its output, `detail` is added to its row.
    """

    num_images: int
    seconds: float
    scores: Mapping[str, float]
    settings: Mapping[str, Any]
    writes: str
    versions: Mapping[str, str] = field(default_factory=dict)
    kept_tars: tuple[str, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)


def as_layer(mlp: HeadMLP) -> nn.Linear:
    """An affine head as one linear layer."""
    w, b = mlp.fold()
    layer = nn.Linear(len(w), 1)
    layer.weight.data = w[None].float()
    layer.bias.data = b.reshape(1).float()
    return layer.requires_grad_(False)


def versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def members(tar: str | Path) -> dict[str, bytes]:
    """The files of a tar by name, in its order."""
    with tarfile.open(tar) as opened:
        found = ((member.name, opened.extractfile(member)) for member in opened if member.isfile())
        return {name: content.read() for name, content in found if content is not None}


def images_of(members: Collection[str], extensions: Collection[str] = IMAGE_RANK) -> dict[str, str]:
    """The names of image members by their samples' keys, in the order of the members."""
    return {key_of(name): name for name in members if extension(name) in extensions}


def key_of(name: str) -> str:
    """The key of the sample that a member belongs to."""
    return name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Gate:
    """Opens once `expected` processes have arrived, so that time counts from the last loaded model.

    Each leaves a file in `folder`: the workers may be Ray's actors as well as our own processes.
    """

    folder: str
    expected: int

    def arrive(self) -> None:
        """Say that this process is ready."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(os.getpid())).touch()

    def wait(self, bound_s: float) -> None:
        """Wait until it is open. Raises TimeoutError after `bound_s` seconds."""
        end = time.monotonic() + bound_s
        while not self.is_open():
            if time.monotonic() > end:
                arrived = len(self._arrivals())
                raise TimeoutError(f"{arrived} of {self.expected} workers ready after {bound_s:.0f} s")
            time.sleep(_POLL_S)

    def is_open(self) -> bool:
        """Whether all have arrived."""
        return len(self._arrivals()) >= self.expected

    def opened_at(self) -> float:
        """When it opened, seconds since 1970; workers that were started again later don't count."""
        return self._arrivals()[self.expected - 1]

    def _arrivals(self) -> list[float]:
        folder = Path(self.folder)
        return sorted(path.stat().st_mtime for path in folder.iterdir()) if folder.exists() else []


def with_fewer(measure: Callable[[int], T], count: int) -> T:
    """`measure(count)` with that many processes; if the GPU's memory runs out, once more with half of them.

    A driver can refuse a process its context, or memory, long before the GPU's memory is full (see
    peers_h100_2026-11-27), and when depends on the machine.
    """
    try:
        return measure(count)
    except Exception as error:
        if count == 1 or not any(words in str(error) for words in _OVERFLOWS):
            raise
    return measure(count // 2)
