"""Fields of images in `metadata.jsonl`, `.csv` or `.parquet`, by Hugging Face's convention."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dali_aesthetic import Config, ModelConfig, Threshold, run
from dali_aesthetic.shards import metadata, plan_shards
from dali_aesthetic.types import Shard, Status
from dali_aesthetic.verify.outputs import verify_output
from tests.conftest import jpeg
from tests.shards.tar_factory import JPEG, joined, read_one, unpack

Row = dict[str, Any]


def write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8-sig")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(JPEG)
    return root


def texts(shards: list[Shard]) -> dict[str, str]:
    """The text that each image's json has, over all shards."""
    samples = [sample for shard in shards for sample in read_one(shard)[0]]
    assert {sample.status for sample in samples} == {Status.OK}
    return {s.key: json.loads(bytes(s.sidecar))["text"] for s in samples if s.sidecar is not None}


KINDS = ["jsonl", "csv", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_metadata_are_the_fields_of_their_images(tmp_path: Path, kind: str) -> None:
    names = [f"train/cat é/{n}.jpg" for n in range(10)]
    root = images(tmp_path / "in", *names)
    said = {name: f'a "cat",\nnumber {name}' for name in names}
    rows = [{"text": text, "file_name": name.removeprefix("train/")} for name, text in said.items()]
    write(root / "train" / f"metadata.{kind}", rows[::-1])
    shards = list(plan_shards(str(root), samples_per_shard=4))
    assert [len(shard.files) for shard in shards] == [5, 5, 3]
    assert texts(shards) == {name.removesuffix(".jpg"): text for name, text in said.items()}
    members = unpack(joined(read_one(shards[0])[0]))
    assert [name for name, _ in members[:2]] == ["train/cat é/0.jpg", "train/cat é/0.json"]
    assert json.loads(members[1][1]) == {"text": said[names[0]], "file_name": "cat é/0.jpg"}
    assert not any(shard.warnings or read_one(shard)[1].warnings for shard in shards)


def test_a_line_of_jsonl_is_taken_byte_for_byte(tmp_path: Path) -> None:
    root = images(tmp_path / "in", "a.jpg", "b.jpg")
    line = b'{"n": 1.50, "file_name" : "a.jpg", "at": "2020-01-01T00:00:00Z", "l": [1, "2", null]}'
    (root / "metadata.jsonl").write_bytes(line + b"\r\n" + b'{"file_name":"b.jpg","n":"mixed"}')
    (shard,) = plan_shards(str(root))
    assert bytes(read_one(shard)[0][0].sidecar or b"") == line


def test_what_lacks_an_image_or_a_row_is_counted(tmp_path: Path) -> None:
    root = images(tmp_path / "in", *(f"{n}.jpg" for n in range(5)), "other/x.jpg")
    rows = [{"file_name": f"{n}.jpg", "text": f"{n}"} for n in (0, 1, 1, 7, 8)]
    (root / "metadata.jsonl").write_text("\n".join([*map(json.dumps, rows), "{", '{"text": 1}', "[]"]))
    (shard,) = plan_shards(str(root))
    assert texts([shard]) == {"0": "0", "1": "1"}
    assert shard.warnings == (
        "rows of metadata left out, for their image has one: 1 (first: 'metadata.jsonl: 1.jpg')",
        "rows of metadata without an image: 2 (first: 'metadata.jsonl: 7.jpg', 'metadata.jsonl: 8.jpg')",
        "rows of metadata that can't be read: 3 "
        "(first: 'metadata.jsonl', 'metadata.jsonl', 'metadata.jsonl')",
        "images without a row in their metadata: 4 (first: '2.jpg', '3.jpg', '4.jpg')",
    )


def test_the_metadata_nearest_to_an_image_wins(tmp_path: Path) -> None:
    root = images(tmp_path / "in", "a/b/1.jpg", "a/2.jpg", "3.jpg")
    write(root / "metadata.csv", [{"file_name": f"{p}.jpg", "text": "far"} for p in ("a/b/1", "./a/2", "3")])
    write(root / "a" / "b" / "metadata.jsonl", [{"file_name": "1.jpg", "text": "near"}])
    write(root / "a" / "metadata.parquet", [{"file_name": "b/../2.jpg", "text": "nearer"}])
    assert texts(list(plan_shards(str(root)))) == {"a/b/1": "near", "a/2": "nearer", "3": "far"}


def test_a_json_of_its_own_goes_before_and_both_are_kept(tmp_path: Path) -> None:
    root = images(tmp_path / "in", "a.jpg")
    (root / "a.json").write_text('{"text": "own"}')
    write(root / "metadata.jsonl", [{"file_name": "a.jpg", "text": "row"}])
    (shard,) = plan_shards(str(root))
    assert texts([shard]) == {"a": "own"}
    contents = dict(unpack(joined(read_one(shard)[0])))
    assert list(contents) == ["a.jpg", "a.json", "a.metadata.json"]
    assert json.loads(contents["a.metadata.json"])["text"] == "row"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"name,text\n0.jpg,x\n", b"\xff\xfe\0" * 99])
def test_metadata_that_is_something_else_costs_no_image(tmp_path: Path, kind: str, content: bytes) -> None:
    root = images(tmp_path / "in", "0.jpg", "1.jpg")
    (root / f"metadata.{kind}").write_bytes(content)
    (shard,) = plan_shards(str(root))
    samples, end = read_one(shard)
    assert [(sample.key, sample.status, sample.sidecar) for sample in samples] == [
        (key, Status.OK, None) for key in "01"
    ]
    assert shard.warnings
    assert not end.warnings


def test_an_open_quote_of_a_csv_costs_the_rows_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "_MOST_ROW_BYTES", 1000)
    limit = csv.field_size_limit(500)
    try:
        root = images(tmp_path / "in", *(f"{n:03}.jpg" for n in range(200)))
        lines = [f"{n:03}.jpg,text {n}" for n in range(200)]
        lines[3] = '003.jpg,"text 3'
        (root / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
        (shard,) = plan_shards(str(root))
        found = texts([shard])
    finally:
        csv.field_size_limit(limit)
    assert {"000", "001", "002", "199"} <= found.keys()
    assert found["199"] == "text 199"
    assert any("can't be read" in warning for warning in shard.warnings)


def test_changed_metadata_is_another_shard(tmp_path: Path) -> None:
    root = images(tmp_path / "in", "a.jpg")
    write(root / "metadata.jsonl", [{"file_name": "a.jpg", "text": "1"}])
    (before,) = plan_shards(str(root))
    assert texts([before]) == {"a": "1"}
    write(root / "metadata.jsonl", [{"file_name": "a.jpg", "text": "22"}])
    (after,) = plan_shards(str(root))
    assert before.fingerprint != after.fingerprint
    assert texts([after]) == {"a": "22"}


def test_many_rows_are_read_once_and_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = images(tmp_path / "in", *(f"{n:04}.jpg" for n in range(60)))
    write(root / "metadata.jsonl", [{"file_name": f"{n:04}.jpg", "text": "x" * 1000} for n in range(60)])
    read = []
    names = metadata._names
    monkeypatch.setattr(metadata, "_names", lambda path: read.append(path) or names(path))
    shards = list(plan_shards(str(root), samples_per_shard=10))
    assert len(texts(shards)) == 60
    assert len(read) == 2, "at planning, and for the index of a process"
    monkeypatch.setattr(metadata, "_MOST_BYTES", 5000)
    samples, end = read_one(shards[0])
    assert sum(sample.sidecar is not None for sample in samples) == 4
    assert end.warnings[0].startswith("rows of metadata left out, above 0 MiB in a shard: 6")


def test_captions_of_metadata_are_in_the_scores_and_in_what_is_kept(
    tmp_path: Path, tiny_model: ModelConfig
) -> None:
    root = tmp_path / "in"
    for n in range(3):
        (root / f"cat/{n}.jpg").parent.mkdir(parents=True, exist_ok=True)
        (root / f"cat/{n}.jpg").write_bytes(jpeg(Image.new("RGB", (40, 40), (n, n, n))))
    write(root / "metadata.jsonl", [{"file_name": f"cat/{n}.jpg", "caption": f"c{n}"} for n in (0, 1, 5)])
    output = tmp_path / "out"
    result = run(
        Config(input=(str(root),), output=str(output), model=tiny_model, threshold=Threshold(raw=-1e9))
    )
    rows = pq.read_table(output / "scores" / "00000.parquet").to_pylist()
    assert [row["caption"] for row in rows] == ["c0", "c1", None]
    with io.BytesIO((output / "shards" / "00000.tar").read_bytes()) as tar:
        names = [name for name, _ in unpack(tar.getvalue())]
    assert names == ["cat/0.jpg", "cat/0.json", "cat/1.jpg", "cat/1.json", "cat/2.jpg"]
    counts = result.stats.reports.warnings.as_dict()
    assert {kind: found["count"] for kind, found in counts.items()} == {
        "rows of metadata without an image": 1,
        "images without a row in their metadata": 1,
    }
    assert not verify_output(output, against_input=True).problems
    assert os.listdir(output / "scores") == ["00000.parquet"]
