"""Stored embeddings to scores: the published values, bad rows, wrong norms, restarts, metadata."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import dali_aesthetic.embeddings.score as module
from dali_aesthetic.embeddings.score import BLOCK_ROWS, NotNormalized, score_embeddings
from dali_aesthetic.shards.listing import InputError
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.write.output import OutputMismatch, RunMismatch
from tests.conftest import snapshot

LAION_V2 = [1.655, 2.359, 3.070, 3.672, 4.238, 4.701, 5.073, 5.365, 5.577, 5.747]
LAION_V1 = [-2.458, -0.138, 1.895, 3.585, 5.100, 6.470, 7.787, 9.048, 10.226, 11.304]
RANDOM = ("random:3",)


def _unit(rows: int, width: int = 16, seed: int = 0) -> npt.NDArray[np.float32]:
    embeddings = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def _w_b_head(folder: Path, width: int = 16) -> tuple[Path, npt.NDArray[np.float64]]:
    w = np.random.default_rng(9).normal(size=width)
    save_file({"w": torch.tensor(w), "b": torch.tensor(5.0).double()}, folder / "mine.safetensors")
    return folder / "mine.safetensors", w


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_ten_real_embeddings_have_their_published_scores(
    heads_dir: Path, tmp_path: Path, dtype: type[np.floating]
) -> None:
    real = np.load(heads_dir / "rating_embeddings_vit_l_14.npy")
    np.save(tmp_path / "real.npy", real.astype(dtype))
    heads = ("laion-v2", "laion-v1")
    score_embeddings(tmp_path / "real.npy", tmp_path / "out", heads, model_dir=heads_dir)
    table = pq.read_table(tmp_path / "out/scores/real.parquet")
    # float16 itself is off by up to 2**-11 of each number; float32 has to give all three decimals.
    atol = 5.1e-4 if dtype is np.float32 else 5e-3
    np.testing.assert_allclose(table["aesthetic_score"], LAION_V2, atol=atol)
    np.testing.assert_allclose(table["aesthetic_score_laion-v1"], LAION_V1, atol=atol)
    assert table["kept"].to_pylist() == [False] * 6 + [True] * 4
    assert table["key"].to_pylist() == [str(row) for row in range(10)]


def test_scores_are_the_heads_over_many_blocks(tmp_path: Path) -> None:
    head, w = _w_b_head(tmp_path)
    embeddings = _unit(3 * BLOCK_ROWS + 5)
    np.save(tmp_path / "many.npy", embeddings)
    result = score_embeddings(tmp_path / "many.npy", tmp_path / "out", [str(head)])
    scores = pq.read_table(tmp_path / "out/scores/many.parquet")["aesthetic_score"].to_numpy()
    np.testing.assert_allclose(scores, embeddings.astype(np.float64) @ w + 5, atol=1e-5)
    assert (result.num_rows, result.num_kept) == (len(embeddings), int((scores >= 5).sum()))


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f2", ">f4", ">f8", "longdouble"])
def test_floats_of_any_length_and_byte_order_are_scored(tmp_path: Path, dtype: str) -> None:
    for name, kind in (("plain", "f4"), ("other", dtype)):
        np.save(tmp_path / f"{name}.npy", np.asfortranarray(_unit(50).astype(kind)))
        score_embeddings(tmp_path / f"{name}.npy", tmp_path / name, RANDOM)
    plain, other = (pq.read_table(tmp_path / f"{name}/scores") for name in ("plain", "other"))
    atol = 2e-2 if dtype.endswith("f2") else 1e-5
    np.testing.assert_allclose(other["aesthetic_score"], plain["aesthetic_score"], atol=atol)


def test_embeddings_that_are_not_normalised_are_refused_or_normalised(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", 11.5 * _unit(50))
    with pytest.raises(NotNormalized, match=r"50 of 50 .* has 11\.5\).*--normalize"):
        score_embeddings(tmp_path / "raw.npy", tmp_path / "out", RANDOM)
    assert not list((tmp_path / "out").glob("s*/*"))
    np.save(tmp_path / "unit.npy", _unit(50))
    score_embeddings(tmp_path / "raw.npy", tmp_path / "a", RANDOM, normalize=True)
    score_embeddings(tmp_path / "unit.npy", tmp_path / "b", RANDOM)
    raw, unit = (
        pq.read_table(tmp_path / name)["aesthetic_score"].to_numpy()
        for name in ("a/scores/raw.parquet", "b/scores/unit.parquet")
    )
    np.testing.assert_allclose(raw, unit, atol=1e-5)


def test_a_damaged_row_is_a_row_with_a_reason(tmp_path: Path) -> None:
    embeddings = _unit(500)
    embeddings[3] = 0
    embeddings[4, 5] = np.nan
    embeddings[400] *= 3
    np.save(tmp_path / "e.npy", embeddings)
    result = score_embeddings(tmp_path / "e.npy", tmp_path / "out", RANDOM, threshold=Threshold(raw=-99))
    table = pq.read_table(tmp_path / "out/scores/e.parquet")
    bad = {row["source_offset"]: row for row in table.to_pylist() if row["status"] != "ok"}
    assert {row: found["status"] for row, found in bad.items()} == {
        3: "empty",
        4: "undecodable",
        400: "undecodable",
    }
    assert bad[400]["error_message"] == "its L2 norm is 3, not 1"
    assert all(found["aesthetic_score"] is None and not found["kept"] for found in bad.values())
    assert (result.num_bad, result.num_kept) == (3, 497)
    stats = json.loads((tmp_path / "out/stats/e.json").read_text())
    assert stats["statuses"] == {"ok": 497, "undecodable": 2, "empty": 1}


def test_a_damaged_row_in_a_short_last_block_is_one_row(tmp_path: Path) -> None:
    embeddings = _unit(BLOCK_ROWS + 20)
    embeddings[BLOCK_ROWS + 7] *= 3
    np.save(tmp_path / "e.npy", embeddings)
    assert score_embeddings(tmp_path / "e.npy", tmp_path / "out", RANDOM).num_bad == 1
    embeddings[BLOCK_ROWS:] *= 3
    np.save(tmp_path / "off.npy", embeddings)
    with pytest.raises(NotNormalized, match="20 of 20 embeddings from row 512"):
        score_embeddings(tmp_path / "off.npy", tmp_path / "off", RANDOM)


def test_metadata_passes_through_across_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_ROWS", BLOCK_ROWS)
    rows = 2 * BLOCK_ROWS + 100
    (tmp_path / "img_emb").mkdir()
    np.save(tmp_path / "img_emb/img_emb_0.npy", _unit(rows).astype(np.float16))
    metadata = {
        "image_path": [f"{i:09d}" for i in range(rows)],
        "caption": [f"caption {i}" if i % 7 else None for i in range(rows)],
        "status": ["success"] * rows,
        "width": list(range(rows)),
    }
    (tmp_path / "metadata").mkdir()
    pq.write_table(pa.table(metadata), tmp_path / "metadata/metadata_0.parquet", row_group_size=999)
    score_embeddings(tmp_path, tmp_path / "out", RANDOM)
    table = pq.read_table(tmp_path / "out/scores/img_emb_0.parquet")
    assert table["key"].to_pylist() == metadata["image_path"] == table["image_path"].to_pylist()
    assert table["caption"].to_pylist() == metadata["caption"]
    assert table["width"].to_pylist() == metadata["width"]
    assert set(table["status"].to_pylist()) == {"ok"}
    assert set(table["json_status"].to_pylist()) == {"success"}


def test_scores_of_files_with_other_metadata_are_one_table(tmp_path: Path) -> None:
    """As pandas writes them: a column of nulls has no type, whole numbers beside a gap are floats."""
    tables = {
        "a": pa.table(
            {"image_path": ["0", "1"], "caption": ["x", "y"], "hash": [1, 2], "NSFW": [None, None]}
        ),
        "b": pa.table(
            {
                "image_path": ["0", "1"],
                "URL": pa.array(["u0", None], pa.large_string()),
                "WIDTH": [640.0, float("nan")],
                "similarity": pa.array([0.5, float("nan")], pa.float32()),
                "hash": pa.array([7, 2**64 - 1], pa.uint64()),
                "tags": [["a"], None],
                "taken": pa.array([0, 2**62], pa.timestamp("us")),
                "status": ["success", "success"],
            }
        ),
    }
    (tmp_path / "metadata").mkdir()
    (tmp_path / "img_emb").mkdir()
    np.save(tmp_path / "img_emb/without.npy", _unit(2))
    for name, table in tables.items():
        np.save(tmp_path / f"img_emb/img_emb_{name}.npy", _unit(2))
        pq.write_table(table, tmp_path / f"metadata/metadata_{name}.parquet")
    score_embeddings(tmp_path, tmp_path / "out", RANDOM, columns=["tags"])
    columns = ("key", "image_path", "caption", "url", "json_width", "similarity", "hash", "tags")
    rows = pq.read_table(tmp_path / "out/scores").select([*columns, "json_status", "json"]).to_pylist()
    assert [list(row.values()) for row in rows] == [
        ["0", "0", "x", None, None, None, 1, None, None, None],
        ["1", "1", "y", None, None, None, 2, None, None, None],
        ["0", "0", None, "u0", 640, 0.5, 7, '["a"]', "success", '{"taken":"1970-01-01 00:00:00.000000"}'],
        ["1", "1", *[None] * 6, "success", f'{{"hash":{2**64 - 1},"taken":"<value out of range: {2**62}>"}}'],
        ["0", None, None, None, None, None, None, None, None, None],
        ["1", None, None, None, None, None, None, None, None, None],
    ]
    (warning,) = json.loads((tmp_path / "out/stats/img_emb_b.json").read_text())["warnings"]
    assert "'taken' don't convert" in warning
    with pytest.raises(RunMismatch, match="columns"):
        score_embeddings(tmp_path, tmp_path / "out", RANDOM)


def test_metadata_of_another_length_or_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "img_emb").mkdir()
    np.save(tmp_path / "img_emb/img_emb_0.npy", _unit(5))
    pq.write_table(pa.table({"image_path": ["a"] * 4}), tmp_path / "img_emb/metadata_0.parquet")
    with pytest.raises(InputError, match=r"has 5 embeddings, .* 4 rows"):
        score_embeddings(tmp_path, tmp_path / "out", RANDOM)
    (tmp_path / "img_emb/metadata_0.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"metadata_0\.parquet can't be read as Parquet"):
        score_embeddings(tmp_path, tmp_path / "out", RANDOM)


def test_a_rerun_skips_what_is_done_and_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", _unit(20, seed=ord(name)))
    inputs, out = tmp_path / "{a,b}.npy", tmp_path / "out"
    assert score_embeddings(inputs, out, RANDOM).num_skipped == 0
    whole = snapshot(out)
    (out / "stats/b.json").unlink()
    again = score_embeddings(inputs, out, RANDOM)
    assert (again.num_skipped, again.num_rows) == (1, 20)
    assert snapshot(out) == whole
    with pytest.raises(RunMismatch, match="heads"):
        score_embeddings(inputs, out, ("random:4",))
    for bound in ({"raw": 4.0}, {"max_raw": 6.0}):
        with pytest.raises(RunMismatch, match="_raw"):
            score_embeddings(inputs, out, RANDOM, threshold=Threshold(**bound))


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "vector.npy", np.ones(5, np.float32))
    np.save(tmp_path / "ints.npy", np.ones((5, 5), np.int64))
    np.save(tmp_path / "cut.npy", _unit(50))
    cut = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "nothing.npy").write_bytes(b"")
    (tmp_path / "header.npy").write_bytes(cut.replace(b"}", b" ", 1))
    (tmp_path / "zip.npy").write_bytes(b"PK\3\4" + bytes(50))
    np.save(tmp_path / "flat.npy", np.empty((5, 0), np.float32))
    for name, message in {
        "vector": "not a matrix",
        "ints": "not a matrix",
        "flat": "not a matrix",
        "cut": "is it complete",
        "nothing": "is it complete",
        "header": "is it complete",
        "zip": "is it complete",
    }.items():
        with pytest.raises(InputError, match=rf"{name}\.npy .*{message}"):
            score_embeddings(tmp_path / f"{name}.npy", tmp_path / "out", RANDOM)
    np.save(tmp_path / "narrow.npy", _unit(5, 8))
    np.save(tmp_path / "wide.npy", _unit(5, 9))
    with pytest.raises(InputError, match="different lengths"):
        score_embeddings(tmp_path / "{narrow,wide}.npy", tmp_path / "out", RANDOM)


def test_a_file_without_rows_has_a_score_file_without_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.empty((0, 16), np.float32))
    score_embeddings(tmp_path / "none.npy", tmp_path / "out", RANDOM)
    table = pq.read_table(tmp_path / "out/scores/none.parquet")
    assert table.num_rows == 0
    assert "aesthetic_score" in table.column_names


def test_other_embeddings_under_a_name_that_is_done_are_refused(tmp_path: Path) -> None:
    for place, seed in (("a", 0), ("b", 1)):
        (tmp_path / place).mkdir()
        np.save(tmp_path / place / "e.npy", _unit(20, seed=seed))
    score_embeddings(tmp_path / "a", tmp_path / "out", RANDOM)
    before = snapshot(tmp_path / "out")
    with pytest.raises(OutputMismatch, match=r"holds scores of .*a/e\.npy, and .*b/e\.npy"):
        score_embeddings(tmp_path / "b", tmp_path / "out", RANDOM)
    (tmp_path / "a").rename(tmp_path / "moved")
    assert score_embeddings(tmp_path / "moved", tmp_path / "out", RANDOM).num_skipped == 1
    changed = np.load(tmp_path / "moved/e.npy")
    changed[-1] *= -1
    np.save(tmp_path / "moved/e.npy", changed)
    with pytest.raises(OutputMismatch, match="other embeddings"):
        score_embeddings(tmp_path / "moved", tmp_path / "out", RANDOM)
    assert {**snapshot(tmp_path / "out"), "run.json": b""} == {**before, "run.json": b""}


def test_a_row_is_named_by_the_first_key_column_it_has(tmp_path: Path) -> None:
    (tmp_path / "img_emb").mkdir()
    np.save(tmp_path / "img_emb/img_emb_0.npy", _unit(3))
    columns = {"key": ["k", None, None], "image_path": ["a", "b", None], "width": [640, 2**32 - 1, -1]}
    pq.write_table(pa.table(columns), tmp_path / "img_emb/metadata_0.parquet")
    score_embeddings(tmp_path, tmp_path / "out", RANDOM)
    table = pq.read_table(next((tmp_path / "out/scores").rglob("*.parquet")))
    assert table["key"].to_pylist() == ["k", "b", "2"]
    assert table["image_path"].to_pylist() == ["a", "b", None]
    assert table["width"].to_pylist() == [640, None, None]
