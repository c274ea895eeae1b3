"""Rows of a large row group are copied a few at a time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dali_aesthetic.types import Sample, Shard
from dali_aesthetic.write import parquet_rows
from dali_aesthetic.write.parquet_rows import KeptRows


def test_a_row_group_is_not_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than 2 GiB in one column it could not even be: an array of `binary` ends there."""
    images = [np.random.default_rng(seed).bytes(50_000) for seed in range(2100)]
    table = pa.table({"image": images, "n": range(2100)})
    source = tmp_path / "one.parquet"
    pq.write_table(table, source, use_dictionary=False)
    asked: list[int] = []

    class Counted(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(size or 0)
            return super().read(size)

    monkeypatch.setattr(parquet_rows, "open_file", Counted)
    shard = Shard(index=0, name="one", kind="parquet", source=str(source))
    rows = [0, 1, 255, 256, 700, 1500, 2099]
    kept = KeptRows(tmp_path / "kept.parquet", str(source))
    kept.add([Sample(shard, str(row), None, (), str(source), row) for row in rows])
    kept.finish()
    kept.publish()
    assert pq.read_table(tmp_path / "kept.parquet").equals(table.take(rows))
    assert pq.ParquetFile(tmp_path / "kept.parquet").num_row_groups == 1
    assert max(asked) < sum(map(len, images)) * 0.6
