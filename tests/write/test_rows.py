from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dali_aesthetic.types import Sample, Shard
from dali_aesthetic.write.rows import MAX_COLUMNS, MAX_JSON_BYTES, ScoreRows, SidecarColumns
from tests.write.scored import GOOD

SHARD = Shard(index=0, name="s", kind="tar", source="in/s.tar")
OURS = [
    *("key", "status", "error_message", "width", "height", "format"),
    *("aesthetic_score", "aesthetic_score_01", "kept", "source_shard", "source_offset", "output_shard"),
]


def sample(key: str, sidecar: bytes | None = None) -> Sample:
    return Sample(
        shard=SHARD, key=key, image=b"x", entries=(b"x",), source="in/s.tar", offset=1 << 40, sidecar=sidecar
    )


def table(scores: list[list[float]], sidecars: list[bytes | None] | None = None, heads: int = 1) -> pa.Table:
    return pq.read_table(io.BytesIO(content(scores, sidecars, heads)))


def content(scores: list[list[float]], sidecars: list[bytes | None] | None = None, heads: int = 1) -> bytes:
    rows = ScoreRows([f"h{n}" for n in range(heads)], "shards/s.tar")
    samples = [sample(f"k{n}", sidecars[n] if sidecars else None) for n in range(len(scores))]
    array = np.array(scores, np.float32).reshape(len(scores), heads)
    rows.add(samples, [GOOD] * len(scores), array, array[:, 0] >= 5)
    return bytes(rows.to_parquet())


def test_columns_types_and_values() -> None:
    found = table([[-1.5], [5.0], [12.0], [np.nan]])
    assert found.column_names == OURS
    types = {name: str(found.schema.field(name).type) for name in OURS}
    assert types == {
        **dict.fromkeys(OURS, "string"),
        **dict.fromkeys(("width", "height"), "int32"),
        **dict.fromkeys(("aesthetic_score", "aesthetic_score_01"), "float"),
        "kept": "bool",
        "source_offset": "int64",
    }
    columns = found.to_pydict()
    assert columns["aesthetic_score"] == [-1.5, 5.0, 12.0, None]
    assert columns["aesthetic_score_01"] == [0.0, 0.5, 1.0, None]
    assert columns["kept"] == [False, True, True, False]
    assert columns["output_shard"] == [None, "shards/s.tar", "shards/s.tar", None]
    assert columns["source_offset"] == [1 << 40] * 4


def test_a_side_that_no_image_has_is_null_and_does_not_stop_the_commit() -> None:
    rows = ScoreRows(["h0"], "shards/s.tar")
    largest, beyond = 2**31 - 1, 2**32 - 1
    headers = [GOOD._replace(width=beyond), GOOD._replace(width=largest, height=2**31)]
    rows.add([sample("a"), sample("b")], headers, np.zeros((2, 1), np.float32), np.zeros(2, np.bool_))
    found = pq.read_table(io.BytesIO(bytes(rows.to_parquet())))
    assert found.column("width").to_pylist() == [None, largest]
    assert found.column("height").to_pylist() == [GOOD.height, None]


def test_further_heads_have_columns_of_their_own() -> None:
    found = table([[1, 2, 3], [4, 5, np.nan]], heads=3)
    assert found.column_names == [*OURS, "aesthetic_score_h1", "aesthetic_score_h2"]
    assert found.column("aesthetic_score_h2").to_pylist() == [3.0, None]


def test_ten_thousand_rows_are_one_row_group_and_the_bytes_are_stable() -> None:
    scores = [[float(n % 10)] for n in range(10_000)]
    sidecars: list[bytes | None] = [b'{"url": "http://%d"}' % n for n in range(10_000)]
    one, two = (content(scores, sidecars) for _ in range(2))
    assert one == two
    assert pq.ParquetFile(io.BytesIO(one)).num_row_groups == 1


def test_rows_added_in_pieces_are_the_same_file() -> None:
    scores = [[float(n)] for n in range(3000)]
    sidecars: list[bytes | None] = [b'{"n": %d}' % n if n % 3 else None for n in range(3000)]
    rows = ScoreRows(["h0"], "shards/s.tar")
    for start in range(0, 3000, 7):
        part = range(start, min(3000, start + 7))
        array = np.array([scores[n] for n in part], np.float32)
        rows.add([sample(f"k{n}", sidecars[n]) for n in part], [GOOD] * len(part), array, array[:, 0] >= 5)
    assert bytes(rows.to_parquet()) == content(scores, sidecars)


def test_names_that_are_not_utf8_are_written_visibly() -> None:
    rows = ScoreRows(["h0"], "shards/s.tar")
    rows.add([sample("bad\udcff")], [GOOD], np.ones((1, 1), np.float32), np.array([False]))
    assert pq.read_table(io.BytesIO(bytes(rows.to_parquet()))).column("key").to_pylist() == ["bad\\udcff"]


def columns(*rows: Any) -> dict[str, list[Any]]:
    found = SidecarColumns(frozenset(("key", "width")))
    for row in rows:
        found.add(row if row is None or isinstance(row, bytes) else json.dumps(row).encode())
    return {name: array.to_pylist() for name, array in found.arrays().items()}


def test_img2dataset_json_passes_through() -> None:
    img2dataset = {
        "url": "http://x/1.jpg",
        "caption": "a cat",
        "key": "000001",
        "error_message": None,
        "width": 256,
        "original_width": 1024,
        "similarity": 0.31,
        "exif": "{}",
    }
    assert columns(img2dataset, None, {**img2dataset, "similarity": 1, "caption": "ü"}) == {
        "url": ["http://x/1.jpg", None, "http://x/1.jpg"],
        "caption": ["a cat", None, "ü"],
        "json_key": ["000001", None, "000001"],
        "json_width": [256, None, 256],
        "original_width": [1024, None, 1024],
        "similarity": [0.31, None, 1.0],
        "exif": ["{}", None, "{}"],
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], [1, 2]),
        ([True, False], [True, False]),
        ([1, 2.5], [1.0, 2.5]),
        ([1, "a"], ["1", "a"]),
        ([1, True], ["1", "true"]),
        ([2**70, 1], [str(2**70), "1"]),
        ([10**18 + 1, 1.5], [str(10**18 + 1), "1.5"]),
        ([2**62, None, 1.5], [2.0**62, None, 1.5]),
        ([1.5, 10**400], ["1.5", str(10**400)]),
        ([[1, {"a": "ü"}], None], ['[1, {"a": "ü"}]', None]),
        (["\ud800", "x"], ["\\ud800", "x"]),
        ([None, 3], [None, 3]),
    ],
)
def test_a_column_has_the_type_of_all_its_values(values: list[Any], expected: list[Any]) -> None:
    assert columns(*({"c": value} for value in values)) == {"c": expected}


@pytest.mark.parametrize(
    "bad",
    [
        *(b"", b"{", b"[1]", b"null", b"\xff\xfe{}", b'"text"', b"[" * 100_000, b'{"a":' * 100_000),
        *(b'{"a": ' + b"9" * 5000 + b"}", b'{"a": "' + b"x" * MAX_JSON_BYTES + b'"}'),
    ],
    ids=lambda bad: repr(bad[:8]),
)
def test_bad_json_counts_as_absent(bad: bytes) -> None:
    found = SidecarColumns(frozenset())
    for sidecar in (b'{"a": 1}', bad, b'{"a": 2}'):
        found.add(sidecar)
    assert found.num_ignored == 1
    assert found.arrays()["a"].to_pylist() == [1, None, 2]


def test_the_number_of_columns_is_bounded_and_the_rest_counted() -> None:
    found = SidecarColumns(frozenset())
    for row in range(2000):
        found.add(json.dumps({"first": row, f"key{row}": row}).encode())
    arrays = found.arrays()
    assert len(arrays) == MAX_COLUMNS
    assert arrays["first"].to_pylist() == list(range(2000))
    assert arrays["key3"].to_pylist() == [None] * 3 + [3] + [None] * 1996
    assert found.num_keys_left_out == 2001 - MAX_COLUMNS


def test_clashing_names_are_prefixed_until_they_are_free() -> None:
    assert columns({"key": "a", "json_key": "b"}) == {"json_key": ["a"], "json_json_key": ["b"]}


def test_parquet_of_two_shards_is_one_dataset(tmp_path: Path) -> None:
    for name, caption in (("a", "x"), ("b", None)):
        sidecar = json.dumps({"caption": caption, "similarity": 0.5}).encode()
        (tmp_path / f"{name}.parquet").write_bytes(content([[1.0]], [sidecar]))
    found = pq.read_table(tmp_path)
    assert found.num_rows == 2
    assert found.column("similarity").to_pylist() == [0.5, 0.5]
