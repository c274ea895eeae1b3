"""The shard stage keeps to its memory budget. NeMo Curator itself is replaced where it is not installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dali_aesthetic import run_shard
from dali_aesthetic.decode.batches import fill_batches
from dali_aesthetic.run_shard import BATCHES_IN_FLIGHT
from dali_aesthetic.types import EncodedBatch

STAGE = "dali_aesthetic.integrations.nemo_curator"
BUDGET_BYTES = 4 << 20


@dataclass
class Task:
    """The fields of NeMo Curator's `FileGroupTask` that the stage uses."""

    dataset_name: str
    data: list[str]
    reader_config: dict[str, Any] = field(default_factory=dict)
    _metadata: dict[str, Any] = field(default_factory=dict)
    _stage_perf: list[Any] = field(default_factory=list)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    if importlib.util.find_spec("nemo_curator") is None:
        names = {
            "loguru": {"logger": None},
            "nemo_curator.stages.base": {"ProcessingStage": object},
            "nemo_curator.stages.image.filters.base": {"BaseFilterStage": object},
            "nemo_curator.stages.resources": {"Resources": dict},
            "nemo_curator.tasks": {"FileGroupTask": Task, "ImageBatch": object},
        }
        for name, contents in names.items():
            module = ModuleType(name)
            vars(module).update(contents)
            monkeypatch.setitem(sys.modules, name, module)
        for name in ("", ".stages", ".stages.image", ".stages.image.filters"):
            monkeypatch.setitem(sys.modules, f"nemo_curator{name}", ModuleType(f"nemo_curator{name}"))
    yield importlib.import_module(STAGE)
    sys.modules.pop(STAGE)


def test_batches_of_the_shard_stage_end_at_its_share_of_the_memory_budget(
    stages: ModuleType, shards_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[EncodedBatch] = []

    def recorded(*arguments: Any) -> Iterator[EncodedBatch]:
        for batch in fill_batches(*arguments):
            batches.append(batch)
            yield batch

    monkeypatch.setattr(run_shard, "fill_batches", recorded)
    stage = stages.AestheticShardStage(
        output_dir=str(tmp_path / "out"),
        input_dir=str(shards_dir),
        encoder="ViT-S-32-alt",
        weights="random:1",
        head="random:1",
        memory_budget_gb=BUDGET_BYTES / 2**30,
    )
    stage.setup()
    stage.process(Task(dataset_name="photos", data=[str(path) for path in sorted(shards_dir.glob("*.tar"))]))
    stage.teardown()
    # Views keep a whole part of their tar in memory; a batch may always hold one.
    entries = [[entry for sample in batch.samples for entry in sample.entries] for batch in batches]
    bases = [[view.obj for view in views if isinstance(view, memoryview)] for views in entries]
    held = [{id(base): memoryview(base).nbytes for base in some} for some in bases]
    share = BUDGET_BYTES / BATCHES_IN_FLIGHT
    assert sum(sum(parts.values()) for parts in held) > share, "one batch would hold them all otherwise"
    assert all(len(parts) <= 1 or sum(parts.values()) <= share for parts in held)
