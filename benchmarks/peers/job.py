"""What every peer is asked to do, and what it hands back; both travel between processes as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from dali_aesthetic.score.head import HeadMLP
from dali_aesthetic.score.spec import TowerSpec, spec_of
from dali_aesthetic.score.weights import load_head


class Unavailable(RuntimeError):
    """The peer can't run here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Score every image of `tars` on `device`, keep those of at least `cut` where the peer can write.

    All tars are the same file; the scores wanted back are those of the first. `precision` is the one a
    peer may choose (fp16 on a GPU); `backend`, `our_precision` and `batch_size` (0: the default) are ours.
    `max_images` bounds a slow peer; a fast one may do more.
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
        """As many of the tars as hold `max_images`, at least one."""
        return self.tars[: max(1, self.max_images // self.per_tar)]

    def warm_tars(self) -> tuple[str, ...]:
        """What a fast program may go through before its time counts: a tar for each core."""
        return self.few_tars()[: self.num_workers]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Self:
        fields = json.loads(path.read_text())
        return cls(**{**fields, "tars": tuple(fields["tars"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerResult:
    """`num_images` in `seconds`: from models loaded and warmed up to the last result written, or in memory.

    `scores` are the first tar's, by key, or by position where the peer gives no keys. `settings` says how
    it was tuned, `writes` what it leaves behind, `detail` what else its row should say.
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
    """Installed versions of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def position_key(index: int) -> str:
    """The key of the sample at a position of the benchmark's own shards."""
    return f"{index:08d}"
