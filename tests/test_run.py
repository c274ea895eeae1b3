"""The main job, end to end on the CPU: scores against the reference, bytes, rows, reruns, exit codes."""

from __future__ import annotations

import io
import json
import pkgutil
import shlex
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from dali_aesthetic.cli import app
from dali_aesthetic.config import Config, ConfigError, ModelConfig
from dali_aesthetic.display import as_dict, summary
from dali_aesthetic.launch.filter import filter_scored
from dali_aesthetic.launch.run import run
from dali_aesthetic.layout import PROFILE
from dali_aesthetic.threshold import Threshold
from dali_aesthetic.verify.outputs import verify_output
from dali_aesthetic.write.lock import OutputBusy, claim
from tests.conftest import add_member, jpeg, read_members, snapshot, write_shard


def config(source: object, output: Path, model: ModelConfig, **more: object) -> Config:
    return Config.build(
        {"input": source, "output": str(output), "device": "cpu", "model": model.model_dump(), **more}
    )


def rows(output: Path, name: str) -> list[dict[str, object]]:
    return pq.read_table(output / "scores" / f"{name}.parquet").to_pylist()


def raw_at_median(output: Path, names: list[str]) -> float:
    scores = [row["aesthetic_score"] for name in names for row in rows(output, name)]
    return float(np.median([score for score in scores if score is not None]))


@pytest.fixture(scope="module")
def scored(shards_dir: Path, tiny_model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over the three shards that keeps about half of the images."""
    first = tmp_path_factory.mktemp("first")
    run(config(str(shards_dir), first, tiny_model))
    cut = raw_at_median(first, ["00000", "00001", "00002"])
    output = tmp_path_factory.mktemp("scored")
    result = run(config(str(shards_dir), output, tiny_model, threshold={"raw": cut}))
    assert result.exit_code == 0
    assert 0 < result.stats.num_kept < result.stats.num_scored
    return output


@pytest.mark.slow
def test_scores_are_those_of_pil_and_open_clip_with_the_real_head(
    photos: list[Image.Image], heads_dir: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    reference = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None).eval()
    torch.save(reference.state_dict(), tmp_path / "vit_b_32.pt")
    transform = open_clip.image_transform(
        224, is_train=False, mean=reference.visual.image_mean, std=reference.visual.image_std
    )
    encoded = {f"{i:03d}": jpeg(photo) for i, photo in enumerate(photos)}
    shard = write_shard(tmp_path / "photos.tar", encoded)
    head = heads_dir / "sa_0_4_vit_b_32_linear.pth"
    model = ModelConfig(
        encoder="ViT-B-32-quickgelu", weights=str(tmp_path / "vit_b_32.pt"), heads=(str(head),)
    )
    run(config(str(shard), tmp_path / "out", model))

    images = torch.stack([transform(Image.open(tmp_path / name)) for name in _write_all(encoded, tmp_path)])
    with torch.inference_mode():
        embeddings = torch.nn.functional.normalize(reference.encode_image(images), dim=-1)
    state = torch.load(head, weights_only=True)
    expected = torch.nn.functional.linear(embeddings, state["weight"], state["bias"])[:, 0].numpy()
    got = np.array([row["aesthetic_score"] for row in rows(tmp_path / "out", "photos")])
    error = np.abs(got - expected)
    assert len(got) == len(photos)
    assert expected.std() > 10 * 0.005, "the photos must differ by more than the tolerance"
    assert error.mean() <= 0.005
    assert error.max() <= 0.03


def _write_all(encoded: dict[str, bytes], folder: Path) -> list[str]:
    for key, image in encoded.items():
        (folder / f"{key}.jpg").write_bytes(image)
    return [f"{key}.jpg" for key in encoded]


@pytest.mark.parametrize("name", ["00000", "00001", "00002"])
def test_kept_samples_are_the_inputs_members_byte_for_byte(scored: Path, shards_dir: Path, name: str) -> None:
    kept = {row["key"] for row in rows(scored, name) if row["kept"]}
    before = [m for m in read_members(shards_dir / f"{name}.tar") if m[0].split(".")[0] in kept]
    assert read_members(scored / "shards" / f"{name}.tar") == before


@pytest.mark.parametrize("name", ["00000", "00001", "00002"])
def test_every_input_sample_is_a_row_in_input_order(scored: Path, shards_dir: Path, name: str) -> None:
    keys = [n[: -len(".jpg")] for n, _ in read_members(shards_dir / f"{name}.tar") if n.endswith(".jpg")]
    got = rows(scored, name)
    assert [row["key"] for row in got] == keys
    for row in got:
        scored_ok = row["status"] == "ok"
        assert (row["aesthetic_score"] is not None) == scored_ok
        assert row["caption"] == row["key"]
        assert (row["output_shard"] is not None) == row["kept"]
        if scored_ok:
            assert row["aesthetic_score_01"] == pytest.approx(
                min(max(row["aesthetic_score"] / 10, 0), 1), abs=1e-6
            )


def test_bad_images_are_rows_with_a_reason(scored: Path) -> None:
    statuses = {row["key"]: row["status"] for row in rows(scored, "00001")}
    assert statuses["1500"] == "truncated"
    assert statuses["1501"] == "empty"
    assert statuses["1502"] == "ok"
    stats = json.loads((scored / "stats" / "00001.json").read_text())
    assert stats["statuses"]["ok"] == 8
    assert stats["num_samples"] == 10


def test_the_threshold_is_the_raw_score(scored: Path) -> None:
    cut = np.float32(json.loads((scored / "run.json").read_text())["identity"]["min_raw"])
    for name in ("00000", "00001", "00002"):
        for row in rows(scored, name):
            good = row["aesthetic_score"] is not None and np.float32(row["aesthetic_score"]) >= cut
            assert row["kept"] == good


def test_a_rerun_skips_what_is_committed_and_redoes_what_is_missing(
    scored: Path, shards_dir: Path, tiny_model: ModelConfig
) -> None:
    cut = json.loads((scored / "run.json").read_text())["identity"]["min_raw"]
    same = config(str(shards_dir), scored, tiny_model, threshold={"raw": cut})
    before = snapshot(scored)
    assert run(same).num_skipped == 3
    assert snapshot(scored) == before
    (scored / "stats" / "00001.json").unlink()
    result = run(same)
    assert (result.num_skipped, [r.name for r in result.stats.reports]) == (2, ["00001"])
    assert snapshot(scored) == before


def test_a_rerun_with_another_config_is_refused_and_names_the_fields(
    scored: Path, shards_dir: Path, tiny_model: ModelConfig
) -> None:
    other = tiny_model.model_copy(update={"weights": "random:2"})
    with pytest.raises(ValueError, match=r"(?s)min_raw: .* there, 9 now.*weights: .*random:1.*random:2"):
        run(config(str(shards_dir), scored, other, threshold={"raw": 9.0}))


def test_an_output_with_other_columns_is_refused(
    scored: Path, shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"columns: \[\] there, \['url:int'\] now"):
        run(config(str(shards_dir), scored, tiny_model, columns="url:int"))
    record = json.loads((scored / "run.json").read_text())
    del record["identity"]["columns"], record["identity"]["scores_format"]  # of a version without them
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"scores_format: '\(not set\)' there, 3 now"):
        run(config(str(shards_dir), tmp_path, tiny_model))


def test_outputs_do_not_depend_on_how_batches_fall(
    scored: Path, shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    """The middle shard alone fills other batches; its bytes must be the same."""
    cut = json.loads((scored / "run.json").read_text())["identity"]["min_raw"]
    run(config(str(shards_dir / "00001.tar"), tmp_path, tiny_model, threshold={"raw": cut}))
    alone, together = snapshot(tmp_path), snapshot(scored)
    for name in ("shards/00001.tar", "scores/00001.parquet"):
        assert alone[name] == together[name]


def test_a_cut_tar_is_processed_up_to_the_cut_and_says_so(
    shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    whole = (shards_dir / "00000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: int(len(whole) * 0.6)])
    result = run(config(str(tmp_path / "cut.tar"), tmp_path / "out", tiny_model, threshold={"raw": -1e9}))
    assert result.exit_code == 0
    (report,) = result.stats.damaged
    assert str(report.num_samples) != "0"
    got = rows(tmp_path / "out", "cut")
    assert got[-1]["status"] == "truncated"
    assert {row["status"] for row in got[:-1]} == {"ok"}
    kept = read_members(tmp_path / "out" / "shards" / "cut.tar")
    assert kept == read_members(shards_dir / "00000.tar")[: len(kept)]
    assert len(kept) == 3 * (len(got) - 1)


def test_a_tar_of_images_then_sidecars_keeps_its_captions_and_says_so(
    shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    whole = read_members(shards_dir / "00000.tar")
    with tarfile.open(tmp_path / "glob.tar", "w") as tar:
        for name, content in sorted(whole, key=lambda member: member[0].rpartition(".")[2]):
            add_member(tar, name, content)
        add_member(tar, "9999.jpg", whole[0][1])
        add_member(tar, "9999.json", b"{")
    settings = config(str(tmp_path / "glob.tar"), tmp_path / "out", tiny_model, threshold={"raw": -1e9})
    result = run(settings)
    kept = read_members(tmp_path / "out" / "shards" / "glob.tar")
    assert kept[:-2] == [(name, dict(whole)[name]) for name, _ in kept[:-2]]
    assert sorted(kept[:-2]) == sorted(whole)
    assert [name[:4] for name, _ in kept] == sorted(name[:4] for name, _ in kept)
    warnings = as_dict(result, settings)["warnings"]
    assert warnings["keys whose files lie apart in the tar, joined"]["count"] == 7
    assert warnings["json files left out of the scores, unreadable or above 1 MiB"]["count"] == 1
    assert verify_output(tmp_path / "out", against_input=True).problems == ()
    rerun = run(settings)
    assert rerun.num_skipped == 1
    assert as_dict(rerun, settings)["warnings"] == warnings


def test_a_folder_of_images_becomes_shards_of_the_files_own_bytes(
    photos: list[Image.Image], tiny_model: ModelConfig, tmp_path: Path
) -> None:
    images = {"a/one.jpg": jpeg(photos[0]), "a/two.png": b"", "b/three.jpeg": jpeg(photos[1])}
    for name, content in images.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / "a" / "one.txt").write_text("a caption")
    result = run(config(str(tmp_path / "in"), tmp_path / "out", tiny_model, threshold={"raw": -1e9}))
    assert result.exit_code == 0
    got = rows(tmp_path / "out", "00000")
    assert [(row["key"], row["status"]) for row in got] == [
        ("a/one", "ok"), ("a/two", "empty"), ("b/three", "ok"),
    ]  # fmt: skip
    members = dict(read_members(tmp_path / "out" / "shards" / "00000.tar"))
    assert members == {
        "a/one.jpg": images["a/one.jpg"],
        "a/one.txt": b"a caption",
        "b/three.jpeg": images["b/three.jpeg"],
    }


def test_a_broken_tar_fails_and_the_others_do_not(
    shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.tar").write_text("<html>404 not found</html>" * 100)
    (tmp_path / "in" / "good.tar").write_bytes((shards_dir / "00002.tar").read_bytes())
    result = run(config(str(tmp_path / "in"), tmp_path / "out", tiny_model))
    assert result.exit_code == 1
    assert [report.name for report in result.stats.failed] == ["bad"]
    assert sorted(p.name for p in (tmp_path / "out" / "stats").iterdir()) == ["good.json"]
    assert not list((tmp_path / "out" / "shards").glob("*bad*"))


def test_a_run_that_cannot_start_leaves_no_folder_behind(
    shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    model = tiny_model.model_copy(update={"weights": str(tmp_path / "none.pt")})
    with pytest.raises(ConfigError, match=r"none\.pt"):
        run(config(str(shards_dir), tmp_path / "out", model))
    assert not (tmp_path / "out").exists()


def test_a_busy_output_is_refused_before_the_model_is_read(
    shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    model = tiny_model.model_copy(update={"weights": str(tmp_path / "none.pt")})
    with claim(tmp_path), pytest.raises(OutputBusy, match="is being written by process"):
        run(config(str(shards_dir), tmp_path, model))


def test_zero_images_are_never_a_success(tiny_model: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        run(config(str(tmp_path / "empty"), tmp_path / "out", tiny_model))
    with tarfile.open(tmp_path / "nothing.tar", "w"):
        pass
    assert run(config(str(tmp_path / "nothing.tar"), tmp_path / "out", tiny_model)).exit_code == 1


def test_several_heads_score_one_pass_and_the_first_decides(shards_dir: Path, tmp_path: Path) -> None:
    model = ModelConfig(encoder="ViT-B-32", weights="random:1", heads=("random:1", "random:2"))
    run(config(str(shards_dir / "00000.tar"), tmp_path, model, threshold={"raw": 5.0}))
    table = pq.read_table(tmp_path / "scores" / "00000.parquet")
    others = [name for name in table.column_names if name.startswith("aesthetic_score_") and "01" not in name]
    assert len(others) == 1
    assert table.column(others[0]).to_pylist() != table.column("aesthetic_score").to_pylist()
    for row in table.to_pylist():
        assert row["kept"] == (row["aesthetic_score"] >= 5.0)


def test_threshold_default_is_half(shards_dir: Path) -> None:
    assert Config(input=("x",), output="y").threshold == Threshold()
    assert Threshold().min_raw == 5.0


def test_a_rerun_of_a_finished_run_tells_what_the_output_holds(
    shards_dir: Path, tiny_model: ModelConfig, scored: Path
) -> None:
    cut = json.loads((scored / "run.json").read_text())["identity"]["min_raw"]
    given = config(str(shards_dir), scored, tiny_model, threshold={"raw": cut})
    told = as_dict(run(given), given)
    assert (told["samples"], told["kept"]) == (0, 0)
    stats = [json.loads(path.read_text()) for path in (scored / "stats").glob("*.json")]
    assert told["output_samples"] == sum(one["num_samples"] for one in stats) > 0
    assert told["output_kept"] == sum(one["num_kept"] for one in stats) > 0
    last = [json.loads(line) for line in (scored / "timing.jsonl").read_text().splitlines()][-1]
    assert told["output_seconds"] >= last["seconds"] > 0


def test_a_run_that_keeps_nothing_names_the_highest_score_and_a_way_on(
    shards_dir: Path, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    given = config(str(shards_dir), tmp_path / "out", tiny_model, threshold={"raw": 1000.0})
    result = run(given)
    console = Console(file=io.StringIO(), width=100)
    summary(result, given, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    scores = [row["aesthetic_score"] for n in range(3) for row in rows(tmp_path / "out", f"{n:05d}")]
    highest = max(score for score in scores if isinstance(score, float))
    (hint,) = [line for line in text.splitlines() if line.startswith("nothing kept")]
    assert f"the highest score is {highest:.4g} (raw)" in hint
    assert f"dali-aesthetic report {tmp_path}/out" in hint
    words = shlex.split(hint[hint.index("dali-aesthetic filter") :])
    words[words.index("--output") + 1] = str(tmp_path / "cut")
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "cut" / "shards").glob("*.tar"))) == 3


def _slower(seconds: float, part: Callable[..., Any]) -> Callable[..., Any]:
    """The same, but each of its items, or the call that gives none, takes so long."""

    def call(*arguments: Any, **options: Any) -> Any:
        found = part(*arguments, **options)
        if not isinstance(found, Iterator):
            time.sleep(seconds)
            return found
        return (item for item in found if time.sleep(seconds) is None)

    return call


@pytest.mark.parametrize(
    ("side", "part", "seconds", "bound"),
    [
        (40, "dali_aesthetic.run_shard.read_shards", 0.3, "storage"),
        (1600, "", 0.0, "decode: CPU cores"),
        (40, "dali_aesthetic.score.scorer.Scorer.score", 0.1, "encode"),
        (40, "dali_aesthetic.write.sink.ShardSink.write", 1.5, "sink"),
    ],
)
def test_the_verdict_names_what_is_short(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_model: ModelConfig,
    side: int,
    part: str,
    seconds: float,
    bound: str,
) -> None:
    """Each stage is slowed down in turn, decoding by large images. The encoder's first use takes a second."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    write_shard(tmp_path / "in/a.tar", {f"{row:02}": buffer.getvalue() for row in range(16)})
    if part:
        where, _, name = part.rpartition(".")
        owner = pkgutil.resolve_name(where)
        monkeypatch.setattr(owner, name, _slower(seconds, getattr(owner, name)))
    batches = {"batch_size": 4, "num_threads": 1}
    result = run(config(str(tmp_path / "in"), tmp_path / "out", tiny_model, decode=batches))
    assert (result.exit_code, result.stats.bound_by()) == (0, bound)


def test_a_profile_is_in_the_scores_and_a_cut_keeps_it(
    photos: list[Image.Image], tiny_model: ModelConfig, tmp_path: Path
) -> None:
    images = {f"{row:02}": jpeg(photo) for row, photo in enumerate(photos[:6])}
    write_shard(tmp_path / "in/a.tar", {**images, "bad": b"no image"})
    where = {"raw": -100, "where": "brightness > 0 and num_frames = 1 and phash is not null"}
    run(config(str(tmp_path / "in"), tmp_path / "plain", tiny_model, threshold=where | {"where": ""}))
    asked = {"threshold": where, "profile": True}
    run(config(str(tmp_path / "in"), tmp_path / "out", tiny_model, **asked))
    found, plain = rows(tmp_path / "out", "a"), rows(tmp_path / "plain", "a")
    names = [name for name, _ in PROFILE]
    assert [{k: v for k, v in row.items() if k not in names} for row in found] == plain
    for row in found:
        photo = images.get(str(row["key"]))
        assert [name for name in names if row[name] is None] == ([] if photo else names)
        assert row["xxh3"] == (photo and xxhash.xxh3_128(photo).hexdigest())
    config_of_cut = config(str(tmp_path / "in"), tmp_path / "cut", tiny_model, threshold=where)
    run(config(str(tmp_path / "in"), tmp_path / "scored", tiny_model, profile=True, scores_only=True))
    filter_scored(config_of_cut, tmp_path / "scored")
    for file in ("scores/a.parquet", "shards/a.tar"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()
    assert not verify_output(tmp_path / "out").problems
