"""`python -m benchmarks`: measure this machine and write a result file."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.dataset import DatasetSpec, make_dataset
from benchmarks.machine import describe, slug
from benchmarks.throughput import Measured, measure
from dali_aesthetic.config import Config
from dali_aesthetic.launch.worker import resolve_device
from dali_aesthetic.overlap import cpu_count

console = Console(highlight=False)


def main(
    device: str = "auto",
    encoder: str = "",
    head: str = "random:0",
    weights: str = "random:0",
    backend: str = "auto",
    precision: str = "auto",
    batch_size: Annotated[int, typer.Option(help="0: the default of the device.")] = 0,
    distinct: Annotated[int, typer.Option(help="Distinct images in a shard; 0: as fits the device.")] = 0,
    num_shards: int = 0,
    short_side: int = 512,
    repeats: int = 3,
    results: Path = Path("benchmarks/results"),
) -> None:
    """Decode only, encoder only, end to end. Random weights by default: speed does not depend on them."""
    chip = resolve_device(device)
    on_gpu = chip.type == "cuda"
    spec = DatasetSpec(
        short_side=short_side,
        distinct=distinct or (2048 if on_gpu else 96),
        num_shards=num_shards or (8 if on_gpu else 2),
    )
    with tempfile.TemporaryDirectory() as folder:
        console.print(f"making {spec.distinct} images for {spec.num_shards} shards ...")
        config = Config.build(
            {
                "input": make_dataset(Path(folder) / "input", spec, cpu_count()),
                "output": folder,
                "device": device,
                "model": {
                    "encoder": encoder or ("ViT-L-14" if on_gpu else "ViT-B-32"),
                    "weights": weights,
                    "heads": (head,),
                    "backend": backend,
                    "precision": precision,
                },
                "decode": {"batch_size": batch_size or None},
            }
        )
        console.print("measuring ...")
        measured = measure(config, Path(folder), repeats)
    _write(results, chip, config, spec, measured)


def _write(
    results: Path, device: torch.device, config: Config, spec: DatasetSpec, measured: list[Measured]
) -> None:
    date = time.strftime("%Y-%m-%d")
    record = {
        "theme": "throughput",
        "date": date,
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "machine": describe(device),
        "dataset": {name: getattr(spec, name) for name in spec.__dataclass_fields__},
        "model": config.model.model_dump(mode="json"),
        "rows": [row.as_row() for row in measured],
    }
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"throughput_{slug(device)}_{date}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    console.print(_table(measured))
    console.print(f"written to {path}")


def _table(measured: list[Measured]) -> Table:
    table = Table("stage", "images/s", "min", "max")
    for row in (m.as_row() for m in measured):
        rate, low, high = (f"{row[name]:,.0f}" for name in ("images_per_second", "min", "max"))
        table.add_row(row["stage"], rate, low, high)
    return table


if __name__ == "__main__":
    typer.run(main)
