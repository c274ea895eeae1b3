"""Rows taken from a Parquet input by number, of every type, in bounded memory."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dali_aesthetic.types import Sample, Shard
from dali_aesthetic.write.kept_rows import KeptRows, taken

HALF = 3 << 29


def test_a_row_group_is_written_in_parts_of_32_mib(tmp_path: Path) -> None:
    """With more than 2 GiB in one column it would fail: that is the limit of a `binary` array."""
    images = [np.random.default_rng(seed % 9).bytes(50_000) for seed in range(2100)]
    table = pa.table({"image": images, "n": range(2100)})
    source = tmp_path / "one.parquet"
    pq.write_table(table, source, use_dictionary=False)
    shard = Shard(index=0, name="one", kind="parquet", source=str(source))
    rows = [0, 1, 255, *range(700, 2100)]
    kept = KeptRows(tmp_path / "kept.parquet", str(source))
    kept.add([Sample(shard, str(row), None, (), str(source), row) for row in rows])
    kept.finish()
    kept.publish()
    assert pq.read_table(tmp_path / "kept.parquet").equals(table.take(rows))
    assert pq.ParquetFile(tmp_path / "kept.parquet").num_row_groups == 3


def test_a_row_group_above_2_gib_is_taken_from() -> None:
    """Two chunks of 1.5 GiB of untouched pages, which pyarrow can't concatenate."""
    offsets, pages = np.array([0, 8, HALF], np.int32), pa.py_buffer(mmap.mmap(-1, HALF))
    piece = pa.Array.from_buffers(pa.binary(), 2, [None, pa.py_buffer(offsets), pages])
    table = pa.table({"image": pa.chunked_array([piece, piece]), "row": [0, 1, 2, 3]})
    with pytest.raises(pa.ArrowInvalid, match="overflow"):
        table.take(pa.array([0, 2]))
    found = pa.concat_tables(taken(table.to_batches(), np.array([0, 2]), table.schema))
    assert found.to_pydict() == {"image": [bytes(8), bytes(8)], "row": [0, 2]}


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.string_view(), pa.binary_view(), pa.dictionary("i4", "str")]
)
@pytest.mark.parametrize("rows", [[], [0], [1, 3], [0, 1, 2, 3, 4]])
def test_rows_of_every_type_stay_in_order(kind: Any, rows: list[int]) -> None:
    column = pa.chunked_array([pa.array(part).cast(kind) for part in (["a", None], ["b", "c", "a"])])
    table = pa.table({"x": column})
    found = pa.concat_tables([table[:0], *taken(table.to_batches(), np.array(rows, np.int64), table.schema)])
    everything = column.to_pylist()
    assert found.column("x").to_pylist() == [everything[row] for row in rows]
    assert found.schema == pa.schema({"x": column.type})
