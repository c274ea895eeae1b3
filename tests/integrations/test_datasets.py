"""Columns of images to columns of scores: every form of an image, Ray Data, Hugging Face datasets."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dali_aesthetic import ImageScorer, ModelConfig
from dali_aesthetic.integrations.datasets import AestheticScorer, BatchScorer, ScoreColumn
from tests.conftest import jpeg


@pytest.fixture(scope="module")
def encoded(photos: list[Image.Image]) -> list[bytes]:
    return [jpeg(photo) for photo in photos[-6:]]


@pytest.fixture(scope="module")
def expected(encoded: list[bytes], tiny_model: ModelConfig) -> npt.NDArray[np.float32]:
    return ImageScorer(tiny_model, device="cpu").score(encoded)


def test_every_form_of_an_image(
    encoded: list[bytes], expected: npt.NDArray[np.float32], tiny_model: ModelConfig, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded[1])
    decoded = Image.open(path)
    column = [
        encoded[0],
        str(path),
        {"bytes": encoded[2], "path": "elsewhere.jpg"},
        {"bytes": None, "path": str(path)},
        decoded,
        np.asarray(decoded),
        None,
        b"no image",
        str(tmp_path / "missing.jpg"),
        "no\0path",
        Image.open(io.BytesIO(encoded[0][:-300])),
        np.zeros((0, 4, 3), np.uint8),
    ]
    scores = BatchScorer("image", model=tiny_model, device="cpu").scores({"image": column})["aesthetic_score"]
    wanted = [expected[index] for index in (0, 1, 2, 1, 1, 1)] + [np.nan] * 6
    exact = [0, 1, 2, 3, *range(6, 12)]
    np.testing.assert_array_equal(scores[exact], np.array(wanted)[exact])
    np.testing.assert_allclose(scores[4:6], wanted[4:6], atol=0.01)


def test_wrong_columns_and_values_are_named(tiny_model: ModelConfig) -> None:
    scorer = BatchScorer("image", model=tiny_model, device="cpu")
    with pytest.raises(KeyError, match="there are picture, text"):
        scorer.scores({"picture": [], "text": []})
    with pytest.raises(TypeError, match="int is no image"):
        scorer.scores({"image": [3]})


@pytest.mark.parametrize(
    "image",
    [b"x", "a.jpg", Path("a.jpg"), {"bytes": b"x"}, Image.new("RGB", (8, 8)), np.zeros((9, 8, 3), np.uint8)],
)
def test_one_row_in_place_of_a_batch_is_refused(tiny_model: ModelConfig, image: Any) -> None:
    with pytest.raises(TypeError, match="one row is given where a batch belongs"):
        BatchScorer("image", model=tiny_model, device="cpu").scores({"image": image})


def test_paths_of_a_streamed_dataset(
    encoded: list[bytes], expected: npt.NDArray[np.float32], tiny_model: ModelConfig, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("0.jpg", encoded[0])
    column = [{"bytes": None, "path": f"zip://{name}.jpg::{tmp_path}/train.zip"} for name in ("0", "missing")]
    scores = BatchScorer("image", model=tiny_model, device="cpu").scores({"image": column})["aesthetic_score"]
    np.testing.assert_array_equal(scores, [expected[0], np.nan])


def test_every_head_is_a_column(encoded: list[bytes]) -> None:
    two = ModelConfig(encoder="ViT-S-32-alt", weights="random:1", heads=("random:1", "punsafe=random:2"))
    scores = BatchScorer(model=two, device="cpu").scores({"image": encoded[:2]})
    assert list(scores) == ["aesthetic_score", "punsafe"]
    assert not np.array_equal(scores["aesthetic_score"], scores["punsafe"])


def test_a_loaded_scorer_is_pickled_without_its_model(encoded: list[bytes], tiny_model: ModelConfig) -> None:
    fresh = ScoreColumn(model=tiny_model, device="cpu")
    before = pickle.dumps(fresh)
    fresh({"image": encoded[:1]})
    assert pickle.dumps(fresh) == before
    assert len(before) < 10_000


@pytest.mark.ray
def test_ray_data_on_a_real_cluster(
    cluster: Any, encoded: list[bytes], expected: npt.NDArray[np.float32], tiny_model: ModelConfig
) -> None:
    rows = [{"bytes": image, "row": row} for row, image in enumerate([*encoded, b"broken"])]
    scored = cluster.data.from_items(rows).map_batches(
        AestheticScorer,
        fn_constructor_kwargs={"image_column": "bytes", "model": tiny_model, "device": "cpu"},
        batch_size=4,
        concurrency=1,
    )
    found = {row["row"]: row["aesthetic_score"] for row in scored.take_all()}
    # An actor has another number of threads, which may sum in another order.
    np.testing.assert_allclose([found[row] for row in range(7)], [*expected, np.nan], atol=1e-5)


def test_datasets_map_and_its_cache(
    encoded: list[bytes],
    expected: npt.NDArray[np.float32],
    tiny_model: ModelConfig,
    tmp_path: Path,
) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    for row, image in enumerate(encoded):
        (tmp_path / f"{row}.jpg").write_bytes(image)
    paths = [str(tmp_path / f"{row}.jpg") for row in range(len(encoded))]
    made = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image(decode=False))
    made.save_to_disk(tmp_path / "set")
    images = datasets.load_from_disk(tmp_path / "set")
    first = images.map(ScoreColumn(model=tiny_model, device="cpu"), batched=True, batch_size=4)
    np.testing.assert_array_equal(np.array(first["aesthetic_score"], np.float32), expected)
    second = images.map(ScoreColumn(model=tiny_model, device="cpu"), batched=True, batch_size=4)
    assert second._fingerprint == first._fingerprint
    decoded = images.cast_column("image", datasets.Image()).map(
        ScoreColumn(model=tiny_model, device="cpu"), batched=True
    )
    np.testing.assert_allclose(decoded["aesthetic_score"], expected, atol=0.01)
