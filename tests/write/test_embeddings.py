"""Saved embeddings: clip-retrieval's layout, read back by its reader, committed with the shard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dali_aesthetic import Config, ModelConfig, run
from dali_aesthetic.embeddings.score import score_embeddings
from tests.conftest import snapshot


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, shards_dir: Path, tiny_model: ModelConfig) -> Path:
    """A run of three shards with a broken and an empty image in the second."""
    output = tmp_path_factory.mktemp("saved")
    config = Config(
        input=(str(shards_dir),), output=str(output), device="cpu", model=tiny_model, save_embeddings=True
    )
    assert run(config).exit_code == 0
    return output


def _scored(output: Path) -> list[dict[str, object]]:
    rows = [row for path in sorted((output / "scores").glob("*")) for row in pq.read_table(path).to_pylist()]
    return [row for row in rows if row["status"] == "ok"]


def test_there_is_a_unit_row_for_every_image_that_was_scored(saved: Path) -> None:
    matrices = [np.load(path) for path in sorted((saved / "embeddings/img_emb").glob("*.npy"))]
    assert [path.name for path in sorted((saved / "embeddings/metadata").iterdir())] == [
        f"metadata_{shard:05d}.parquet" for shard in range(3)
    ]
    assert all(matrix.dtype == np.float16 for matrix in matrices)
    every = np.concatenate(matrices).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(every, axis=1), 1, atol=1e-3)
    assert len(every) == len(_scored(saved)) == 22


def test_the_packages_own_reader_reads_them(saved: Path) -> None:
    embedding_reader = pytest.importorskip("embedding_reader", reason="embedding-reader is not installed")
    reader = embedding_reader.EmbeddingReader(
        embeddings_folder=str(saved / "embeddings/img_emb"),
        metadata_folder=str(saved / "embeddings/metadata"),
        meta_columns=["image_path", "caption"],
        file_format="parquet_npy",
    )
    batches = list(reader(batch_size=5, show_progress=False))
    paths = [path for _, metadata in batches for path in metadata["image_path"]]
    assert paths == [row["key"] for row in _scored(saved)]
    assert [caption for _, metadata in batches for caption in metadata["caption"]] == paths
    ours = np.concatenate([np.load(path) for path in sorted((saved / "embeddings/img_emb").glob("*"))])
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in batches]), ours)


def test_scoring_them_gives_the_runs_scores(saved: Path, tmp_path: Path, tiny_model: ModelConfig) -> None:
    score_embeddings(saved / "embeddings", tmp_path / "out", tiny_model.heads, encoder=tiny_model.encoder)
    again = {
        row["key"]: row["aesthetic_score"]
        for path in (tmp_path / "out/scores").glob("*")
        for row in pq.read_table(path).to_pylist()
    }
    direct = {row["key"]: row["aesthetic_score"] for row in _scored(saved)}
    assert again.keys() == direct.keys()
    # float16 keeps each number to 2**-11 of it; the head is linear.
    assert max(abs(again[key] - direct[key]) for key in direct) < 0.01  # type: ignore[operator]


def test_a_shard_done_again_has_the_same_bytes(
    saved: Path, shards_dir: Path, tiny_model: ModelConfig
) -> None:
    whole = snapshot(saved)
    (saved / "stats/00001.json").unlink()
    (saved / "embeddings/img_emb/img_emb_00001.npy").write_bytes(b"half")
    config = Config(
        input=(str(shards_dir),), output=str(saved), device="cpu", model=tiny_model, save_embeddings=True
    )
    run(config)
    assert {name: data for name, data in snapshot(saved).items() if "embeddings" in name} == {
        name: data for name, data in whole.items() if "embeddings" in name
    }


def test_without_the_option_there_are_none(shards_dir: Path, tmp_path: Path, tiny_model: ModelConfig) -> None:
    shard = str(shards_dir / "00000.tar")
    run(Config(input=(shard,), output=str(tmp_path / "out"), device="cpu", model=tiny_model))
    assert not (tmp_path / "out/embeddings").exists()
