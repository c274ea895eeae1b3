"""Scores are read back in the calling thread."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dali_aesthetic.write import read_scores
from dali_aesthetic.write.read_scores import read_kept


def test_no_other_thread_touches_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that drops the file while the interpreter exits aborts the process: exit code 134."""
    rows = {"aesthetic_score": pa.array([5.0], pa.float32()), "key": ["a"], "source_shard": ["s.tar"]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    threads: set[int] = set()

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            threads.add(threading.get_ident())
            return super().read(size)

    content = (tmp_path / "rows.parquet").read_bytes()
    monkeypatch.setattr(read_scores, "open_file", lambda location: Watched(content))
    found = read_kept(tmp_path, "rows", lambda raw_R: raw_R >= 5, None)
    assert found.to_pylist() == [{"source_shard": "s.tar", "key": "a"}]
    assert threads == {threading.get_ident()}
