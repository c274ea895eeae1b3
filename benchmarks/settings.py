"""The options that all parts share: device, model, data, repeats, folders."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from benchmarks.datasets import Datasets, DatasetSpec, make_dataset
from benchmarks.results import Record
from dali_aesthetic.config import Config
from dali_aesthetic.launch.worker import resolve_device
from dali_aesthetic.overlap import cpu_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of a part. Zero or empty: a default by device and `quick`."""

    device: str = "auto"
    encoder: str = ""
    weights: str = "random:0"
    head: str = "random:0"
    backend: str = "auto"
    precision: str = "auto"
    batch_size: int = 0
    distinct: int = 0
    num_shards: int = 0
    repeats: int = 0
    seconds: float = 0.0
    quick: bool = False
    resume: bool = False
    data: Path = Path("build/bench-data")
    results: Path = Path("benchmarks/results")

    def as_json(self) -> str:
        """As text, for a child process."""
        return json.dumps(
            {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The settings that `as_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "data": Path(fields["data"]), "results": Path(fields["results"])})

    @property
    def chip(self) -> torch.device:
        return resolve_device(self.device)

    @property
    def on_gpu(self) -> bool:
        return self.chip.type == "cuda"

    @property
    def num_repeats(self) -> int:
        return self.repeats or (2 if self.quick else 3)

    @property
    def num_seconds(self) -> float:
        """Seconds of a repeat of work that has no end of its own."""
        return self.seconds or (4.0 if not self.quick else 2.0 if self.on_gpu else 0.3)

    @property
    def encoder_name(self) -> str:
        """On a GPU with QuickGELU, as the published weights are: random ones take it from the name alone."""
        return self.encoder or ("ViT-L-14-quickgelu" if self.on_gpu else "ViT-B-32")

    @property
    def datasets(self) -> Datasets:
        """The usual shards: 8,192 images on a GPU, 6,144 when quick, under 200 on a CPU."""
        distinct, shards = (1024, 8) if self.on_gpu else (96, 2)
        if self.quick:
            distinct, shards = (1024, 6) if self.on_gpu else (40, 2)
        return Datasets(self.data, self.distinct or distinct, self.num_shards or shards)

    def host_shards(self) -> tuple[DatasetSpec, str]:
        """Spec and glob of the host theme's shards.

        The commit of a shard costs about 5 ms of CPU, 10 us a sample if it has 512. img2dataset puts 10,000
        into one.
        """
        spec = DatasetSpec(distinct=self.distinct or 2048, num_shards=self.num_shards or 4)
        return spec, make_dataset(self.data / "host", spec, cpu_count())

    def config(self, pattern: str, **model: Any) -> Config:
        """A config of the package for a run over `pattern`; `model` overrides fields of its model section."""
        fields = {
            "encoder": self.encoder_name,
            "weights": self.weights,
            "heads": (self.head,),
            "backend": self.backend,
            "precision": self.precision,
        }
        return Config.build(
            {
                "input": pattern,
                "output": str(self.data / "output"),
                "device": self.device,
                "model": fields | model,
                "decode": {"batch_size": self.batch_size or None},
            }
        )

    def named(self) -> dict[str, Any]:
        """These settings as a result file has them: without folders and `resume`."""
        plain = {name: value for name, value in asdict(self).items() if not isinstance(value, Path)}
        del plain["resume"]
        return {**plain, "encoder": self.encoder_name}

    def record(self, theme: str, date: str = "") -> Record:
        """The theme's result file for these settings, today's unless a date is given."""
        return Record(theme, self.results, self.chip, self.named(), resume=self.resume, date=date)
