"""One row for every input sample, kept or not, good or bad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.types import ImageHeader, Sample, Status
from dali_aesthetic.write.sidecar import SidecarColumns

_ROW_GROUP = 65_536
_COLUMNS = (
    *("key", "status", "error_message", "width", "height", "format"),
    *("aesthetic_score", "aesthetic_score_01", "kept", "source_shard", "source_offset", "output_shard"),
)


def score_columns(head_names: Sequence[str]) -> list[str]:
    """Column of each head: the first decides what is kept and has the plain name."""
    return ["aesthetic_score", *(f"aesthetic_score_{name}" for name in head_names[1:])]


class ScoreRows:
    """The rows of one shard, held as columns until it is committed (about 0.5 KB a row)."""

    def __init__(self, head_names: Sequence[str], output_shard: str) -> None:
        self._score_names = score_columns(head_names)
        if len(set(self._score_names)) < len(self._score_names):
            raise ValueError(f"two heads share a name in {list(head_names)}; rename one of them")
        self._output_shard = output_shard
        self._samples: list[tuple[str, str, int]] = []
        self._statuses: list[Status] = []
        self._messages: list[str | None] = []
        self._headers: list[tuple[int, int, str]] = []
        self._kept: list[npt.NDArray[np.bool_]] = []
        self._scores: list[npt.NDArray[np.float32]] = []
        self._sidecars = SidecarColumns(frozenset((*_COLUMNS, *self._score_names)))

    def add(
        self,
        samples: Sequence[Sample],
        headers: Sequence[ImageHeader],
        scores_RH: npt.NDArray[np.float32],
        kept_R: npt.NDArray[np.bool_],
    ) -> None:
        """Appends rows in input order."""
        add_sidecar = self._sidecars.add
        for sample, header in zip(samples, headers, strict=True):
            self._samples.append((sample.key, sample.source, sample.offset))
            self._headers.append((header.width, header.height, header.format))
            bad = sample if sample.status is not Status.OK else header
            self._statuses.append(bad.status)
            self._messages.append(bad.message or None)
            add_sidecar(sample.sidecar)
        self._kept.append(kept_R)
        self._scores.append(np.array(scores_RH, dtype=np.float32))

    def statuses(self) -> dict[str, int]:
        """How many samples ended in each status that occurred, in the order of `Status`."""
        counts = {status.value: self._statuses.count(status) for status in Status}
        return {status: count for status, count in counts.items() if count}

    def warnings(self) -> tuple[str, ...]:
        """Oddities of the json sidecars."""
        found = []
        if self._sidecars.num_ignored:
            found.append(f"unreadable json files left out of the scores: {self._sidecars.num_ignored}")
        if self._sidecars.dropped:
            shown = ", ".join(sorted(self._sidecars.dropped)[:3])
            found.append(f"json keys beyond the first 64 left out of the scores: {shown}, …")
        return tuple(found)

    def to_parquet(self) -> pa.Buffer:
        """The whole file; the same rows give the same bytes with the same pyarrow."""
        sink = pa.BufferOutputStream()
        pq.write_table(
            self._table(),
            sink,
            compression="zstd",
            compression_level=3,
            row_group_size=_ROW_GROUP,
            write_statistics=True,
        )
        return sink.getvalue()

    def _table(self) -> pa.Table:
        keys, sources, offsets = zip(*self._samples, strict=True) if self._samples else ((), (), ())
        widths, heights, formats = zip(*self._headers, strict=True) if self._headers else ((), (), ())
        kept = np.concatenate(self._kept) if self._kept else np.zeros(0, np.bool_)
        none_RH = np.zeros((0, len(self._score_names)), np.float32)
        scores_RH = np.concatenate(self._scores) if self._scores else none_RH
        raw = pa.array(scores_RH[:, 0], pa.float32(), from_pandas=True)
        normal = pa.array(np.clip(scores_RH[:, 0] / np.float32(10), 0, 1), pa.float32(), from_pandas=True)
        columns = {
            "key": pa.array(keys, pa.string()),
            "status": pa.array([status.value for status in self._statuses], pa.string()),
            "error_message": pa.array(self._messages, pa.string()),
            "width": pa.array([width or None for width in widths], pa.int32()),
            "height": pa.array([height or None for height in heights], pa.int32()),
            "format": pa.array([name or None for name in formats], pa.string()),
            "aesthetic_score": raw,
            "aesthetic_score_01": normal,
            "kept": pa.array(kept, pa.bool_()),
            "source_shard": pa.array(sources, pa.string()),
            "source_offset": pa.array(offsets, pa.int64()),
            "output_shard": pa.array([self._output_shard if one else None for one in kept], pa.string()),
        }
        for index, name in enumerate(self._score_names[1:], start=1):
            columns[name] = pa.array(scores_RH[:, index], pa.float32(), from_pandas=True)
        return pa.table({**columns, **self._sidecars.arrays()})
