"""Our stages with NeMo Curator's released wheel: the tars that `run` writes, the scores its stage gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dali_aesthetic import Config, ModelConfig, Threshold, run
from tests.conftest import REPOSITORY, read_members

pytest.importorskip("nemo_curator", reason="nemo-curator is not installed")
stages = pytest.importorskip(
    "dali_aesthetic.integrations.nemo_curator", reason="nemo-curator lacks what it imports"
)

CUT = 0.0
TINY = {"encoder": "ViT-S-32-alt", "weights": "random:1", "head": "random:1"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, shards_dir: Path, tiny_model: ModelConfig) -> Path:
    """The output of `run`."""
    output = tmp_path_factory.mktemp("expected")
    config = Config(
        input=(str(shards_dir),),
        output=str(output),
        device="cpu",
        model=tiny_model,
        threshold=Threshold(raw=CUT),
    )
    run(config)
    return output


def _stage(output: Path, **options: Any) -> Any:
    stage = stages.AestheticShardStage(output_dir=str(output), score_threshold=CUT, **TINY, **options)
    stage.setup_on_node()
    stage.setup()
    return stage


def _task(*paths: Path) -> Any:
    from nemo_curator.tasks import FileGroupTask

    return FileGroupTask(dataset_name="photos", data=[str(path) for path in paths])


def test_the_shard_stage_writes_the_tars_of_run(shards_dir: Path, expected: Path, tmp_path: Path) -> None:
    stage = _stage(tmp_path / "out", input_dir=str(shards_dir))
    task = _task(shards_dir / "00000.tar", shards_dir / "00001.tar")
    (result,) = stage.process_batch([task])
    assert result.dataset_name == "photos"
    assert result.data == [str(tmp_path / f"out/shards/0000{shard}.tar") for shard in range(2)]
    for path in map(Path, result.data):
        assert path.read_bytes() == (expected / "shards" / path.name).read_bytes()
        scores = f"scores/{path.stem}.parquet"
        assert (tmp_path / "out" / scores).read_bytes() == (expected / scores).read_bytes()
    kept = [name for path in result.data for name, _ in read_members(Path(path))]
    everything = [name for path in task.data for name, _ in read_members(Path(path))]
    assert 0 < len(kept) < len(everything)
    before = (tmp_path / "out/shards/00000.tar").stat().st_mtime_ns
    assert stage.process(task).data == result.data
    assert (tmp_path / "out/shards/00000.tar").stat().st_mtime_ns == before
    stage.teardown()


@pytest.mark.slow
def test_a_pipeline_of_nemo_curator_runs_the_shard_stage(
    shards_dir: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partitioning by their stage, the work by ours, in the workers of their executor over Ray Data.

    Their other executor asks for more cores than two.
    """
    from nemo_curator.backends.ray_data import RayDataExecutor
    from nemo_curator.pipeline import Pipeline
    from nemo_curator.stages.file_partitioning import FilePartitioningStage

    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    partition = FilePartitioningStage(str(shards_dir), files_per_partition=1, file_extensions=[".tar"])
    output = tmp_path / "out"
    stage = stages.AestheticShardStage(
        output_dir=str(output), input_dir=str(shards_dir), score_threshold=CUT, **TINY
    )
    pipeline = Pipeline(name="aesthetic", stages=[partition, stage])
    try:
        tasks = pipeline.run(executor=RayDataExecutor())
    finally:
        ray.shutdown()
    found = sorted(path for task in tasks for path in task.data)
    assert found == sorted(str(output / "shards" / path.name) for path in shards_dir.glob("*.tar"))
    for path in map(Path, found):
        assert read_members(path) == read_members(expected / "shards" / path.name)


def test_a_task_without_a_kept_sample_is_dropped(shards_dir: Path, tmp_path: Path) -> None:
    stage = stages.AestheticShardStage(output_dir=str(tmp_path / "out"), score_threshold=99.0, **TINY)
    stage.setup()
    assert stage.process(_task(shards_dir / "00000.tar")) is None
    assert (tmp_path / "out/scores/00000.parquet").exists()
    stage.teardown()


def test_clashing_names_and_broken_tars_are_errors(shards_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other/00000.tar"
    other.parent.mkdir()
    other.write_bytes((shards_dir / "00000.tar").read_bytes())
    broken = tmp_path / "other/broken.tar"
    broken.write_bytes(b"no tar" * 1000)
    stage = _stage(tmp_path / "out")
    stage.process(_task(shards_dir / "00000.tar"))
    with pytest.raises(ValueError, match="would both be 00000"):
        stage.process(_task(other))
    with pytest.raises(RuntimeError, match=r"1 of 1 shards failed: .*broken\.tar"):
        stage.process(_task(broken))
    stage.teardown()


def test_the_filter_stage_keeps_what_that_of_nemo_curator_keeps(tmp_path: Path) -> None:
    from nemo_curator.models.aesthetics import MLP
    from nemo_curator.stages.image.filters.aesthetic_filter import ImageAestheticFilterStage as Theirs
    from nemo_curator.tasks import ImageBatch, ImageObject

    torch.manual_seed(5)
    head = MLP().eval()
    folder = tmp_path / "ttj/sac-logos-ava1-l14-linearMSE"
    folder.mkdir(parents=True)
    save_file(head.state_dict(), folder / "model.safetensors")
    embeddings = torch.nn.functional.normalize(torch.randn(70, 768), dim=-1)
    middle = head(embeddings)[:, 0].sort().values[34:36]
    embeddings = embeddings.numpy()

    def batch() -> Any:
        images = [ImageObject(image_id=str(row), embedding=one) for row, one in enumerate(embeddings)]
        return ImageBatch(dataset_name="photos", data=images)

    kept, scores = {}, {}
    for name, kind in {"theirs": Theirs, "ours": stages.ImageAestheticFilterStage}.items():
        stage = kind(
            model_dir=str(tmp_path),
            score_threshold=float(middle.mean()),
            model_inference_batch_size=32,
            num_gpus_per_worker=0.25,
            verbose=True,
        )
        stage.setup()
        task = batch()
        kept[name] = [image.image_id for image in stage.process(task).data]
        scores[name] = np.array([image.aesthetic_score for image in task.data])
    np.testing.assert_allclose(scores["ours"], scores["theirs"], atol=1e-6)
    assert middle.diff() > 1e-5  # no rounding moves an image across the cut
    assert kept["ours"] == kept["theirs"]
    assert len(kept["ours"]) == 35


def test_a_threshold_on_another_scale_is_warned_of(tmp_path: Path) -> None:
    from loguru import logger

    said: list[str] = []
    handler = logger.add(said.append, level="WARNING")
    stages.ImageAestheticFilterStage(model_dir=str(tmp_path))
    stages.AestheticShardStage(output_dir=str(tmp_path / "out"))
    logger.remove(handler)
    assert len(said) == 1
    assert "did you mean 5?" in said[0]
