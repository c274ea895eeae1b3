"""Filtered scores give the bytes of one run, whatever the threshold's spelling."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dali_aesthetic.config import Config, ModelConfig
from dali_aesthetic.display import as_dict, removed
from dali_aesthetic.launch.filter import filter_scored, run_top
from dali_aesthetic.launch.run import run
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.verify.outputs import verify_output
from tests.conftest import add_member, jpeg, snapshot

RUN_FILES = ("shards/", "scores/", "stats/")


def config(source: Path, output: Path, model: ModelConfig, **more: object) -> Config:
    values = {"input": str(source), "output": str(output), "device": "cpu", "model": model.model_dump()}
    return Config.build(values | more)


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in snapshot(folder).items() if name.startswith(RUN_FILES)}


@pytest.fixture(scope="module")
def scored(shards_dir: Path, tiny_model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    result = run(config(shards_dir, folder, tiny_model, scores_only=True))
    assert (result.exit_code, result.stats.num_kept) == (0, 0)
    return folder


@pytest.fixture(scope="module")
def raw_scores(scored: Path) -> np.ndarray:
    tables = [pq.read_table(path) for path in sorted((scored / "scores").iterdir())]
    return np.concatenate([table.column("aesthetic_score").to_numpy() for table in tables])


def test_scores_only_writes_no_images(scored: Path) -> None:
    names = sorted(snapshot(scored))
    assert not [name for name in names if name.startswith("shards/")]
    assert [name for name in names if name.startswith("stats/")] == [f"stats/{i:05d}.json" for i in range(3)]
    for path in (scored / "scores").iterdir():
        table = pq.read_table(path)
        assert not any(table.column("kept").to_pylist())
        assert set(table.column("output_shard").to_pylist()) == {None}


WHERE = "width >= height AND (caption LIKE '%1' OR bytes_per_pixel < 0.3) AND url IS NOT NULL"


@pytest.mark.parametrize("bounds", ["half", "range", "nothing", "all", "where", "text"])
def test_filter_writes_what_run_would_have_written(
    shards_dir: Path,
    scored: Path,
    raw_scores: np.ndarray,
    tiny_model: ModelConfig,
    tmp_path: Path,
    bounds: str,
) -> None:
    low, middle, high = np.nanquantile(raw_scores, [0.2, 0.5, 0.8]).tolist()
    threshold = {
        "half": {"raw": middle},
        "range": {"raw": low, "max_raw": high},
        "nothing": {"raw": 1e6},
        "all": {"raw": -1e6},
        "where": {"where": WHERE},
        "text": {"where": "json ->> '$.caption' IS NULL AND caption NOT LIKE '%2'", "max_raw": high},
    }[bounds]
    small = {"decode": {"batch_size": 4}}
    ran = run(config(shards_dir, tmp_path / "run", tiny_model, threshold=threshold, **small))
    result = filter_scored(config(shards_dir, tmp_path / "cut", tiny_model, threshold=threshold), str(scored))
    assert result.exit_code == 0
    assert outputs(tmp_path / "cut") == outputs(tmp_path / "run")
    assert result.stats.num_kept == ran.stats.num_kept == sum(table_of(tmp_path / "run").kept)
    assert verify_output(tmp_path / "run", against_input=True).problems == ()
    assert removed(result) == removed(ran)


@pytest.mark.parametrize("raw", [None, "middle"])
def test_a_run_says_what_each_part_of_a_condition_removes(
    shards_dir: Path, raw_scores: np.ndarray, tiny_model: ModelConfig, tmp_path: Path, raw: str | None
) -> None:
    middle = float(np.nanmedian(raw_scores))
    text = "width > 200 AND (caption LIKE '%1' OR caption LIKE '%0') AND height >= width AND width > 200"
    cut = {"where": text} | ({"raw": middle} if raw else {})
    result = run(config(shards_dir, tmp_path, tiny_model, threshold=cut, decode={"batch_size": 5}))
    rows = table_of(tmp_path)
    rows = rows[rows.aesthetic_score.notna()]
    marks = [rows.width > 200, rows.caption.str[-1].isin(["0", "1"]), rows.height >= rows.width]
    marks = [rows.aesthetic_score >= np.float32(middle), *marks] if raw else marks
    left, expected = pd.Series(True, rows.index), []
    for mark in marks:
        expected.append(((~mark).sum(), (left & ~mark).sum()))
        left &= mark
    assert [counts for _, *counts in removed(result)] == [list(one) for one in expected]
    assert [part for part, *_ in removed(result)][-3::2] == ["width > 200", "height >= width"]
    (tmp_path / "stats" / "00001.json").unlink()
    again = run(config(shards_dir, tmp_path, tiny_model, threshold=cut))
    assert again.num_skipped == 2
    assert removed(again) == removed(result), "of the whole output"
    said = as_dict(again, config(shards_dir, tmp_path, tiny_model, threshold=cut))
    assert said["removed"][-1] == {
        "part": "height >= width",
        "alone": expected[-1][0],
        "in_order": expected[-1][1],
    }


def table_of(folder: Path) -> pd.DataFrame:
    return pd.concat([pq.read_table(path).to_pandas() for path in sorted((folder / "scores").iterdir())])


def test_a_condition_keeps_what_pandas_keeps_and_nothing_without_a_score(
    shards_dir: Path, scored: Path, raw_scores: np.ndarray, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    middle = float(np.nanmedian(raw_scores))
    for number, (threshold, keep) in enumerate(
        [
            ({"where": WHERE}, lambda rows: rows.fits),
            (
                {"where": WHERE, "raw": middle},
                lambda rows: rows.fits & (rows.aesthetic_score >= middle),
            ),
            (
                {"where": WHERE, "top": 0.5},
                lambda rows: rows.fits & (rows.aesthetic_score >= middle),
            ),
            ({"where": "true"}, lambda rows: rows.aesthetic_score.notna()),
        ]
    ):
        output = tmp_path / str(number)
        filter_scored(config(shards_dir, output, tiny_model, threshold=threshold), str(scored))
        rows = table_of(output)
        dense = rows.num_bytes / (rows.width * rows.height) < 0.3
        either = rows.caption.str.endswith("1") | dense
        rows["fits"] = (rows.width >= rows.height) & either & rows.aesthetic_score.notna()
        assert 0 < rows.kept.sum() < len(rows)
        assert rows.kept.tolist() == keep(rows).tolist(), threshold


def test_keep_top_with_a_condition_is_one_run(
    shards_dir: Path, scored: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    """The share is of all scored samples: what joins the two is AND."""
    both = {"top": "50%", "where": "width > 300"}
    result = run_top(config(shards_dir, tmp_path / "top", tiny_model, threshold=both))
    filter_scored(config(shards_dir, tmp_path / "cut", tiny_model, threshold=both), str(scored))
    assert outputs(tmp_path / "top") == outputs(tmp_path / "cut")
    assert 0 < result.stats.num_kept < 11
    recorded = Config.build(json.loads((tmp_path / "top" / "run.json").read_text())["config"])
    assert run_top(recorded).num_skipped == 3


def test_another_condition_is_refused_with_the_command_that_makes_it(
    shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = run(config(shards_dir, out, tiny_model, threshold={"where": "width > 300"}))
    again = run(config(shards_dir, out, tiny_model, threshold={"where": " width > 300 "}))
    assert (first.num_skipped, again.num_skipped) == (0, 3)
    for other, flags in (
        ({"where": "width > 400"}, "--where 'width > 400'"),
        ({"raw": 4.5}, "--raw-threshold 4.5"),
        ({"raw": 4.5, "where": "width > 300"}, "--raw-threshold 4.5 --where 'width > 300'"),
    ):
        with pytest.raises(ValueError, match="can be cut again without a GPU: ") as error:
            run(config(shards_dir, out, tiny_model, threshold=other))
        assert str(error.value).endswith(f"--scores {out} --output {out}-cut {flags}")


PREFILTER = "min_side >= 150 AND format = 'jpeg' AND (caption LIKE '1%' OR json_width IS NULL)"


def test_what_a_prefilter_leaves_out_is_neither_decoded_nor_bad(
    shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    """Bad samples stay bad; the rows of the others have their sizes."""
    settings = {"prefilter": PREFILTER, "guard": {"quarantine": True, "max_bad_fraction": 0.1}}
    for name, size in (("run", 32), ("small", 3)):
        result = run(
            config(
                shards_dir,
                tmp_path / name,
                tiny_model,
                threshold={"where": "width > 200"},
                decode={"batch_size": size},
                **settings,
            )
        )
    assert outputs(tmp_path / "run") == outputs(tmp_path / "small")
    rows = table_of(tmp_path / "run")
    large = rows[["width", "height"]].min(axis=1) >= 150
    bad = rows.status.isin(["truncated", "empty"])
    assert rows.status.tolist() == [
        status if is_bad else ("ok" if fits else "filtered")
        for status, is_bad, fits in zip(rows.status, bad, large, strict=True)
    ]
    assert 0 < (rows.status == "filtered").sum() < 20
    assert rows.aesthetic_score.notna().tolist() == (rows.status == "ok").tolist()
    assert rows.width.notna().sum() == 23
    assert rows.kept.tolist() == ((rows.status == "ok") & (rows.width > 200)).tolist()
    stats = result.stats
    assert (stats.num_bad, stats.statuses["filtered"]) == (2, (rows.status == "filtered").sum())
    assert sum(report.num_quarantined for report in stats.reports) == 2
    assert verify_output(tmp_path / "run", against_input=True).problems == ()


def test_a_prefiltered_run_is_its_scores_cut(
    shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    cut = {"threshold": {"where": "height > 200"}}
    run(config(shards_dir, tmp_path / "run", tiny_model, prefilter=PREFILTER, **cut))
    run(config(shards_dir, tmp_path / "scored", tiny_model, prefilter=PREFILTER, scores_only=True))
    filter_scored(config(shards_dir, tmp_path / "cut", tiny_model, **cut), tmp_path / "scored")
    assert outputs(tmp_path / "cut") == outputs(tmp_path / "run")
    other = config(shards_dir, tmp_path / "run", tiny_model, prefilter="width > 5", **cut)
    with pytest.raises(ValueError, match=r"prefilter: .* there, 'width > 5' now") as error:
        run(other)
    assert "dali-aesthetic filter" not in str(error.value), "its scores lack what it wants"
    early = config(tmp_path / "nowhere", tmp_path / "o", tiny_model, prefilter="aesthetic_score > 5")
    with pytest.raises(ValueError, match="--prefilter 'aesthetic_score > 5': there is no column"):
        run(early)


def test_a_run_of_which_nothing_is_left_is_complete(
    shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    result = run(config(shards_dir, tmp_path / "out", tiny_model, prefilter="width > 100000"))
    assert (result.exit_code, result.stats.num_scored, result.stats.statuses["filtered"]) == (0, 0, 22)


def test_an_unknown_column_is_refused_before_anything_is_read(
    scored: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    wrong = config(tmp_path / "nowhere", tmp_path / "out", tiny_model, threshold={"where": "punsaf < 1"})
    for cut in (run, run_top, lambda config: filter_scored(config, scored)):
        with pytest.raises(ValueError, match=r"no column punsaf: did you mean punsafe\? The columns"):
            cut(wrong)
    assert not (tmp_path / "out").exists()


def test_verify_finds_a_mark_against_the_condition(
    shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    run(config(shards_dir, tmp_path, tiny_model, threshold={"where": "width > 300"}))
    record = json.loads((tmp_path / "run.json").read_text())
    record["identity"]["where"] = "width > 400"
    (tmp_path / "run.json").write_text(json.dumps(record))
    problems = verify_output(tmp_path).problems
    assert problems
    assert all("are marked as kept, or not, against their scores" in text for _, text in problems)


def test_filter_has_the_columns_of_the_scores_or_those_given(
    shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    all_of_it = {"raw": -1e6}
    run(config(shards_dir, tmp_path / "scored", tiny_model, scores_only=True, columns="caption:int,Url"))
    for columns in ((), ("caption:int", "Url"), ("note",)):
        folder = tmp_path / f"cut{len(columns)}"
        chosen = config(shards_dir, folder, tiny_model, threshold=all_of_it, columns=columns)
        assert filter_scored(chosen, str(tmp_path / "scored")).exit_code == 0
    run(config(shards_dir, tmp_path / "run", tiny_model, threshold=all_of_it, columns="caption:int,Url"))
    assert outputs(tmp_path / "cut0") == outputs(tmp_path / "cut2") == outputs(tmp_path / "run")
    row = pq.read_table(tmp_path / "run" / "scores").to_pylist()[0]
    assert row["Url"].startswith("http://x/")
    assert (row["caption"], json.loads(row["json"])) == (None, {"caption": row["key"]})
    assert "note" in pq.read_table(tmp_path / "cut1" / "scores").column_names


def test_keep_top_equals_a_run_at_the_quantile_of_the_scores(
    shards_dir: Path, raw_scores: np.ndarray, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    result = run_top(config(shards_dir, tmp_path / "top", tiny_model, threshold={"top": "25%"}))
    ok = raw_scores[~np.isnan(raw_scores)]
    assert result.stats.num_kept == round(0.25 * len(ok))
    cut = Threshold(top=0.25).resolve_top(raw_scores).min_raw
    assert result.threshold.min_raw == cut
    run(config(shards_dir, tmp_path / "run", tiny_model, threshold={"raw": cut}))
    assert outputs(tmp_path / "top") == outputs(tmp_path / "run")
    again = run_top(config(shards_dir, tmp_path / "top", tiny_model, threshold={"top": "25%"}))
    assert again.num_skipped == 3
    record = json.loads((tmp_path / "top" / "run.json").read_text())
    recorded = Config.build(record["config"])
    assert recorded.threshold == Threshold(top=0.25), "what --config reads is the same run"
    assert run_top(recorded).num_skipped == 3


def test_filter_reads_under_the_limits_of_the_scoring_run(
    photos: list[Image.Image], tiny_model: ModelConfig, tmp_path: Path
) -> None:
    """A sample above the limit has no json in its row; read under another one it had."""
    source = tmp_path / "in.tar"
    with tarfile.open(source, "w") as tar:
        for key, mib in (("a", 0), ("b", 2), ("c", 0)):
            add_member(tar, f"{key}.jpg", jpeg(photos[0]))
            add_member(tar, f"{key}.bin", bytes(mib << 20))
            add_member(tar, f"{key}.json", b'{"of": "%s"}' % key.encode())
    small = {"guard": {"max_member_mb": 1}}
    run(config(source, tmp_path / "run", tiny_model, threshold={"raw": -1e6}, **small))
    run(config(source, tmp_path / "scored", tiny_model, scores_only=True, **small))
    filter_scored(
        config(source, tmp_path / "cut", tiny_model, threshold={"raw": -1e6}), str(tmp_path / "scored")
    )
    run_top(config(source, tmp_path / "top", tiny_model, threshold={"top": 1.0}, **small))
    for name in ("cut", "top"):
        assert outputs(tmp_path / name) == outputs(tmp_path / "run")
        assert (
            json.loads((tmp_path / name / "run.json").read_bytes())["config"]["guard"]["max_member_mb"] == 1
        )


def test_keep_top_resumes_where_its_output_lies_within_the_input(
    shards_dir: Path, photos: list[Image.Image], tiny_model: ModelConfig, tmp_path: Path
) -> None:
    """Files that a stopped cut has written are no input for the scores."""
    shutil.copytree(shards_dir, tmp_path / "tars")
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(photos[:6]):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(photo))
    for source in (tmp_path / "tars", tmp_path / "photos"):
        half = config(source, source / "kept", tiny_model, threshold={"top": "50%"})
        assert run_top(half).exit_code == 0
        whole = snapshot(source / "kept")
        next((source / "kept" / "stats").iterdir()).unlink()
        assert run_top(half).exit_code == 0
        assert snapshot(source / "kept") == whole


def test_scores_of_another_input_are_refused(
    shards_dir: Path, scored: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for i in range(3):
        (other / f"{i:05d}.tar").write_bytes((shards_dir / f"{(i + 1) % 3:05d}.tar").read_bytes())
    with pytest.raises(ValueError, match="is not what was scored"):
        filter_scored(config(other, tmp_path / "out", tiny_model), str(scored))
    assert not list((tmp_path / "out" / "stats").iterdir())


def test_photos_replaced_since_the_scoring_are_refused(
    photos: list[Image.Image], tiny_model: ModelConfig, tmp_path: Path
) -> None:
    """Another photo under the same name would be kept for the score of the old one."""
    source = tmp_path / "photos"
    source.mkdir()
    for number, photo in enumerate(photos[:3]):
        (source / f"{number}.jpg").write_bytes(jpeg(photo))
    run(config(source, tmp_path / "scored", tiny_model, scores_only=True))
    source.rename(tmp_path / "moved")
    moved = config(tmp_path / "moved", tmp_path / "moved-cut", tiny_model, threshold={"raw": -1e6})
    assert filter_scored(moved, str(tmp_path / "scored")).stats.num_kept == 3
    (tmp_path / "moved" / "1.jpg").write_bytes(jpeg(photos[3]))
    cut = config(tmp_path / "moved", tmp_path / "cut", tiny_model, threshold={"raw": -1e6})
    with pytest.raises(ValueError, match="is not what was scored: files of its shard 00000 came, went"):
        filter_scored(cut, str(tmp_path / "scored"))


def test_a_folder_without_scores_is_refused(
    shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="holds no scores"):
        filter_scored(config(shards_dir, tmp_path / "out", tiny_model), str(tmp_path))


def test_unscored_shards_fail_by_name_and_keep_top_refuses_them(
    shards_dir: Path, scored: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    shutil.copytree(scored, tmp_path / "half")
    (tmp_path / "half" / "stats" / "00001.json").unlink()
    result = filter_scored(config(shards_dir, tmp_path / "out", tiny_model), str(tmp_path / "half"))
    assert result.exit_code == 1
    assert [report.name for report in result.stats.failed] == ["00001"]
    top = config(shards_dir, tmp_path / "top", tiny_model, threshold={"top": 0.5})
    with pytest.raises(ValueError, match="needs every score"):
        filter_scored(top, str(tmp_path / "half"))
