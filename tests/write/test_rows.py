from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dali_aesthetic.types import Sample, Shard
from dali_aesthetic.write import json_fields
from dali_aesthetic.write import rows as rows_module
from dali_aesthetic.write.json_fields import MAX_JSON_BYTES, FieldColumns
from dali_aesthetic.write.rows import FIELDS, ScoreRows, condition_columns, json_columns
from dali_aesthetic.write.sink import ShardSink
from tests.conftest import add_member
from tests.write.scored import GOOD, JPEG, at_least_5, batches, shard_of

SHARD = Shard(index=0, name="s", kind="tar", source="in/s.tar")
FACTS = [
    *("url", "caption", "text", "json_key", "uid", "json_status", "json_error_message", "json_width"),
    *("json_height", "original_width", "original_height", "exif", "md5", "sha256", "sha512", "SAMPLE_ID"),
    *("hash", "similarity", "punsafe", "pwatermark", "aesthetic", "json_AESTHETIC_SCORE", "NSFW", "LICENSE"),
    *("LANGUAGE", "json"),
]
OURS = [
    *("key", "status", "error_message", "width", "height", "format", "num_bytes"),
    *("aesthetic_score", "aesthetic_score_01", "kept", "source_shard", "source_offset", "output_shard"),
]


def sample(key: str, sidecar: bytes | None = None) -> Sample:
    return Sample(
        shard=SHARD, key=key, image=b"x", entries=(b"x",), source="in/s.tar", offset=1 << 40, sidecar=sidecar
    )


def score_rows(folder: Path, heads: int = 1, columns: Sequence[str] = ()) -> ScoreRows:
    names = [f"h{n}" for n in range(heads)]
    score_names = ["aesthetic_score", *(f"aesthetic_score_{name}" for name in names[1:])]
    return ScoreRows(folder / "s.parquet", names, "shards/s.tar", json_columns(columns, score_names))


def written(rows: ScoreRows) -> bytes:
    rows.finish()
    rows.publish()
    return rows.final.read_bytes()


def content(
    folder: Path, scores: list[list[float]], sidecars: list[bytes | None] | None = None, heads: int = 1
) -> bytes:
    rows = score_rows(folder, heads)
    samples = [sample(f"k{n}", sidecars[n] if sidecars else None) for n in range(len(scores))]
    array = np.array(scores, np.float32).reshape(len(scores), heads)
    rows.add(samples, [GOOD] * len(scores), array, array[:, 0] >= 5)
    return written(rows)


def table(folder: Path, scores: list[list[float]], heads: int = 1) -> pa.Table:
    return pq.read_table(io.BytesIO(content(folder, scores, heads=heads)))


def test_columns_types_and_values(tmp_path: Path) -> None:
    found = table(tmp_path, [[-1.5], [5.0], [12.0], [np.nan]])
    assert found.column_names == [*OURS, *FACTS]
    types = {name: str(found.schema.field(name).type) for name in OURS}
    assert types == {
        **dict.fromkeys(OURS, "string"),
        **dict.fromkeys(("width", "height"), "int32"),
        **dict.fromkeys(("aesthetic_score", "aesthetic_score_01"), "float"),
        "kept": "bool",
        **dict.fromkeys(("num_bytes", "source_offset"), "int64"),
    }
    columns = found.to_pydict()
    assert columns["aesthetic_score"] == [-1.5, 5.0, 12.0, None]
    assert columns["aesthetic_score_01"] == [0.0, 0.5, 1.0, None]
    assert columns["kept"] == [False, True, True, False]
    assert columns["output_shard"] == [None, "shards/s.tar", "shards/s.tar", None]
    assert columns["source_offset"] == [1 << 40] * 4


def test_a_side_that_no_image_has_is_null_and_does_not_stop_the_commit(tmp_path: Path) -> None:
    rows = score_rows(tmp_path)
    largest, beyond = 2**31 - 1, 2**32 - 1
    headers = [GOOD._replace(width=beyond), GOOD._replace(width=largest, height=2**31)]
    rows.add([sample("a"), sample("b")], headers, np.zeros((2, 1), np.float32), np.zeros(2, np.bool_))
    found = pq.read_table(io.BytesIO(written(rows)))
    assert found.column("width").to_pylist() == [None, largest]
    assert found.column("height").to_pylist() == [GOOD.height, None]


def test_further_heads_have_columns_of_their_own(tmp_path: Path) -> None:
    found = table(tmp_path, [[1, 2, 3], [4, 5, np.nan]], heads=3)
    assert found.column_names == [*OURS, "aesthetic_score_h1", "aesthetic_score_h2", *FACTS]
    assert found.column("aesthetic_score_h2").to_pylist() == [3.0, None]


def test_ten_thousand_rows_are_one_row_group_and_the_bytes_are_stable(tmp_path: Path) -> None:
    scores = [[float(n % 10)] for n in range(10_000)]
    sidecars: list[bytes | None] = [b'{"url": "http://%d"}' % n for n in range(10_000)]
    one, two = (content(tmp_path, scores, sidecars) for _ in range(2))
    assert one == two
    assert pq.ParquetFile(io.BytesIO(one)).num_row_groups == 1


@pytest.mark.parametrize("limits", [{}, {"_PIECE_BYTES": 90, "_GROUP_BYTES": 4000}, {"_GROUP_ROWS": 1000}])
def test_rows_added_in_pieces_are_the_same_file(
    tmp_path: Path, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limits.items():
        module = json_fields if name.startswith("_PIECE") else rows_module
        monkeypatch.setattr(module, name, value)
    scores = [[float(n)] for n in range(3000)]
    sidecars: list[bytes | None] = [
        b'{"n": %d, "similarity": %d}' % (n, n) if n % 3 else None for n in range(3000)
    ]
    rows = score_rows(tmp_path)
    for start in range(0, 3000, 7):
        part = range(start, min(3000, start + 7))
        array = np.array([scores[n] for n in part], np.float32)
        rows.add([sample(f"k{n}", sidecars[n]) for n in part], [GOOD] * len(part), array, array[:, 0] >= 5)
    pieces = written(rows)
    assert pieces == content(tmp_path, scores, sidecars)
    assert pq.ParquetFile(io.BytesIO(pieces)).num_row_groups > 2 * bool(limits)
    found = pq.read_table(io.BytesIO(pieces)).select(["key", "similarity", "json"]).to_pylist()
    assert found[2999] == {"key": "k2999", "similarity": 2999.0, "json": '{"n":2999}'}


def test_names_that_are_not_utf8_are_written_visibly(tmp_path: Path) -> None:
    rows = score_rows(tmp_path)
    rows.add([sample("bad\udcff")], [GOOD], np.ones((1, 1), np.float32), np.array([False]))
    assert pq.read_table(io.BytesIO(written(rows))).column("key").to_pylist() == ["bad\\udcff"]


def columns(*rows: Any, chosen: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The columns that hold a value."""
    found = FieldColumns(json_columns(chosen, ["aesthetic_score"]))
    for row in rows:
        found.add(row if row is None or isinstance(row, bytes) else json.dumps(row).encode())
    values = {name: array.to_pylist() for name, array in found.take().items()}
    return {name: column for name, column in values.items() if any(one is not None for one in column)}


IMG2DATASET = {
    "url": "http://x/1.jpg",
    "caption": "a cat",
    "key": "000001",
    "error_message": None,
    "width": 256,
    "original_width": 1024,
    "similarity": 0.31,
    "exif": "{}",
}


def test_img2dataset_json_passes_through() -> None:
    assert columns(IMG2DATASET, None, {**IMG2DATASET, "similarity": 1, "caption": "ü", "seed": [1, "ü"]}) == {
        "url": ["http://x/1.jpg", None, "http://x/1.jpg"],
        "caption": ["a cat", None, "ü"],
        "json_key": ["000001", None, "000001"],
        "json_width": [256, None, 256],
        "original_width": [1024, None, 1024],
        "similarity": [0.31, None, 1.0],
        "exif": ["{}", None, "{}"],
        "json": [None, None, '{"seed":[1,"ü"]}'],
    }


@pytest.mark.parametrize(
    ("kind", "value", "expected", "rest"),
    [
        ("string", "x", "x", None),
        ("string", 1, "1", None),
        ("string", True, "true", None),
        ("string", [1, {"a": "ü"}], '[1,{"a":"ü"}]', None),
        ("string", "\ud800", None, '{"c": "\\ud800"}'),
        ("int", 7, 7, None),
        ("int", 512.0, 512, None),
        ("int", 2.5, None, '{"c":2.5}'),
        ("int", "7", None, '{"c":"7"}'),
        ("int", True, None, '{"c":true}'),
        ("int", 2**63, None, f'{{"c":{2**63}}}'),
        ("float", 0.5, 0.5, None),
        ("float", 2**62, None, f'{{"c":{2**62}}}'),
        ("float", 3, 3.0, None),
        ("float", True, None, '{"c":true}'),
        ("float", 10**400, None, f'{{"c":{10**400}}}'),
        ("float", float("nan"), None, None),
        ("float", float("inf"), None, '{"c":"Infinity"}'),
        ("bool", True, True, None),
        ("bool", 1, None, '{"c":1}'),
        ("bool", None, None, None),
    ],
)
def test_a_value_that_does_not_fit_its_column_stays_in_the_text(
    kind: str, value: Any, expected: Any, rest: str | None
) -> None:
    found = columns({"c": None}, {"c": value}, chosen=[f"c:{kind}"])
    assert found.get("c", [None, None]) == [None, expected]
    assert found.get("json", [None, None]) == [None, rest]


def test_one_odd_value_leaves_the_others_of_its_column_alone() -> None:
    found = columns(*({"similarity": value} for value in (0.5, "?", 1, None)))
    assert found == {"similarity": [0.5, None, 1.0, None], "json": [None, '{"similarity":"?"}', None, None]}


def test_names_that_differ_in_case_are_one_column_and_lose_nothing() -> None:
    laion = {"URL": "http://x", "WIDTH": 640.0, "nsfw": "UNLIKELY"}
    assert columns(laion, {"url": "a", "URL": "b"}) == {
        "url": ["http://x", "a"],
        "json_width": [640, None],
        "NSFW": ["UNLIKELY", None],
        "json": [None, '{"URL":"b"}'],
    }
    fields = json_columns(["LANG:string", "Similarity:string"], ["aesthetic_score"])
    folded = [field.column.casefold() for field in fields]
    assert len(set(folded)) == len(folded) == len(FIELDS) + 2
    assert ("Similarity", pa.string()) in [(field.column, field.kind) for field in fields]


def test_a_chosen_field_without_a_type_is_text_or_has_that_of_img2dataset() -> None:
    kinds = {field.column: str(field.kind) for field in json_columns(["tag", "similarity", "dc:x:int"], [])}
    assert (kinds["tag"], kinds["similarity"], kinds["dc:x"]) == ("string", "double", "int64")


def test_the_column_of_all_other_fields_can_be_left_out() -> None:
    row = {"caption": "a cat", "masks": [1, 2], "seed": 3}
    assert columns(row, chosen=["seed:int"])["json"] == ['{"masks":[1,2]}']
    assert columns(row, chosen=["-json", "seed:int"]) == {"caption": ["a cat"], "seed": [3]}
    assert "json" not in condition_columns(["laion-v2"], ["-json"])


def test_clashing_names_are_prefixed_until_they_are_free() -> None:
    row = {"key": "a", "json_key": "b", "json": "c", "format": "d", "aesthetic_score": 1}
    assert columns(row, chosen=["json_key", "json", "format", "aesthetic_score:int"]) == {
        "json_key": ["a"],
        "json_json_key": ["b"],
        "json_json": ["c"],
        "json_format": ["d"],
        "json_aesthetic_score": [1],
    }
    heads = json_columns([], ["aesthetic_score", "punsafe"])
    assert "json_punsafe" in [field.column for field in heads]


@pytest.mark.parametrize(
    "bad",
    [
        *(b"", b"{", b"[1]", b"null", b"\xff\xfe{}", b'"text"', b"[" * 100_000, b'{"a":' * 100_000),
        *(b'{"a": ' + b"9" * 5000 + b"}", b'{"a": "' + b"x" * MAX_JSON_BYTES + b'"}'),
    ],
    ids=lambda bad: repr(bad[:8]),
)
def test_bad_json_counts_as_absent(bad: bytes) -> None:
    found = FieldColumns(json_columns(["a:int"], []))
    for sidecar in (b'{"a": 1}', bad, b'{"a": 2}'):
        found.add(sidecar)
    assert found.num_ignored == 1
    assert found.take()["a"].to_pylist() == [1, None, 2]


@pytest.mark.parametrize("chosen", [(), ("x",)], ids=["rest", "column"])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_json_of_any_depth_is_text_or_counted(chosen: Sequence[str], begin: str, end: str) -> None:
    for depth in range(900, 1100):
        text = f'{{"x":{begin * depth}1{end * depth},"url":"u"}}'
        found = FieldColumns(json_columns(chosen, []))
        found.add(text.encode())
        row = {name: array[0].as_py() for name, array in found.take().items()}
        if found.num_ignored:
            assert not any(row.values())
        elif row["json"] is None:
            assert (row["x"], row["url"]) == (text[5:-11], "u")
        else:
            assert row["url"] == "u"
            assert json.loads(row["json"]).keys() <= {"x", "url"}


def test_what_json_can_not_write_is_kept_as_it_came() -> None:
    assert columns(b'{"a": 1e400, "url": "u"}') == {"url": ["u"], "json": ['{"a": 1e400, "url": "u"}']}


def test_memory_is_that_of_a_row_group_whatever_the_json_weighs(tmp_path: Path) -> None:
    """As in SA-1B: a hundred masks a sample."""
    rows = score_rows(tmp_path)
    masks = [{"counts": "x" * 700, "bbox": [0.5] * 4, "id": n} for n in range(100)]
    samples = [sample("k", json.dumps({"masks": masks}).encode())] * 64
    before = pa.total_allocated_bytes()
    largest = 0
    for _ in range(32):
        rows.add(samples, [GOOD] * 64, np.zeros((64, 1), np.float32), np.zeros(64, np.bool_))
        largest = max(largest, pa.total_allocated_bytes() - before)
    assert sum(len(one.sidecar or b"") for one in samples) * 32 > 140 << 20
    assert largest < 60 << 20
    assert pq.ParquetFile(io.BytesIO(written(rows))).metadata.num_rows == 2048


def json_tar(path: Path, rows: Sequence[dict[str, Any] | None]) -> Shard:
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            add_member(tar, f"{path.stem}{number}.jpg", JPEG)
            if row is not None:
                add_member(tar, f"{path.stem}{number}.json", json.dumps(row).encode())
    return shard_of(path)


DIFFERING: dict[str, list[dict[str, Any] | None]] = {
    "a": [{"url": "u0"}, {"url": "u1", "similarity": 1, "id": 1}],
    "b": [{"url": "u2", "caption": "a dog", "similarity": 0.5, "id": "x7"}, {"tags": ["a", 1], "WIDTH": 9.0}],
    "c": [None, {"similarity": None, "hash": "not a number", "deep": {"a": [1.5, None]}}],
    "d": [],
    "e": [{"caption": 5, "width": 1 << 40, "json": "{", "aesthetic_score": 9, "status": "success"}],
}


def read_by_pyarrow(folder: Path) -> pa.Table:
    return pq.read_table(folder)


def read_by_duckdb(folder: Path) -> pa.Table:
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    return duckdb.sql(f"select * from '{folder}/*.parquet'").to_arrow_table()


def read_by_polars(folder: Path) -> pa.Table:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    return polars.read_parquet(f"{folder}/*.parquet").to_arrow()


def read_by_datasets(folder: Path) -> pa.Table:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    files = sorted(map(str, folder.glob("*.parquet")))
    found = datasets.load_dataset("parquet", data_files=files, cache_dir=str(folder.parent / "cache"))
    return found["train"].data.table


@pytest.mark.parametrize("read", [read_by_pyarrow, read_by_duckdb, read_by_polars, read_by_datasets])
def test_scores_of_shards_with_other_json_are_one_table(
    tmp_path: Path, read: Callable[[Path], pa.Table]
) -> None:
    shards = [json_tar(tmp_path / f"{name}.tar", rows) for name, rows in DIFFERING.items()]
    with ShardSink(tmp_path / "out", ["v2"], at_least_5, columns=["id", "tags:string"]) as sink:
        reports = [report for batch in batches(shards, 3) for report in sink.write(batch)] + sink.flush()
    assert not any(report.error or report.warnings for report in reports)
    found = read(tmp_path / "out" / "scores")
    assert found.column_names == [*OURS, *FACTS[:-1], "id", "tags", "json"]
    rows = {row["key"]: row for row in found.to_pylist()}
    facts = {
        key: [row[name] for name in ("url", "caption", "similarity", "id", "tags", "json_width", "json")]
        for key, row in rows.items()
    }
    assert facts == {
        "a0": ["u0", None, None, None, None, None, None],
        "a1": ["u1", None, 1.0, "1", None, None, None],
        "b0": ["u2", "a dog", 0.5, "x7", None, None, None],
        "b1": [None, None, None, None, '["a",1]', 9, None],
        "c0": [None] * 7,
        "c1": [*[None] * 6, '{"hash":"not a number","deep":{"a":[1.5,null]}}'],
        "e0": [None, "5", None, None, None, 1 << 40, '{"json":"{"}'],
    }
    clashing = ("status", "json_status", "aesthetic_score", "json_AESTHETIC_SCORE")
    assert [rows["e0"][name] for name in clashing] == ["ok", "success", 0.0, 9.0]
