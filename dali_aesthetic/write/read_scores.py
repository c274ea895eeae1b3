"""Scores of an earlier run, read back in the form that the sink takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic import layout
from dali_aesthetic.stores.access import open_file
from dali_aesthetic.stores.location import join
from dali_aesthetic.types import ConfigError, ImageHeader, Route, Status
from dali_aesthetic.write.rows import Condition, Keep, read_columns, score_columns, stored_profile

_ROW_COLUMNS = ("key", "source_offset", "status", "error_message", "width", "height", "format")


class ScoresMismatch(ConfigError):
    """The folder holds no scores, or scores of another input."""


@dataclass(frozen=True, slots=True)
class StoredScores:
    """The rows of one shard in input order. `scores_RH` is float32 [R, H], NaN where there is no score.

    `profile_R` has the columns of `layout.PROFILE` where they were asked for.
    """

    keys: Sequence[str]
    offsets: Sequence[int]
    headers: Sequence[ImageHeader]
    scores_RH: npt.NDArray[np.float32]
    profile_R: npt.NDArray[np.void] | None = None


def scores_record(folder: str | Path) -> dict[str, Any]:
    """The record of the run that left scores in `folder`. Raises ScoresMismatch without one."""
    try:
        return layout.read_record(folder)
    except (layout.NotARun, OSError) as error:
        raise ScoresMismatch(f"--scores {folder} holds no scores: {error}") from None


def read_scored_by(folder: str | Path) -> dict[str, Any]:
    """The identity of the run that made the scores in `folder`, also where `filter` has cut them since.

    Raises ScoresMismatch for scores that no run made, and for those of a packed output: kept samples only.
    """
    record = scores_record(folder)
    found = layout.scored_by(record)
    if layout.packed_from(record) is not None or "heads" not in found:
        raise ScoresMismatch(
            f"--scores {folder} was not written by `score`, `run` or `filter`: give such a one"
        )
    return found


def read_scores(
    folder: str | Path, name: str, head_names: Sequence[str], profile: bool = False
) -> StoredScores:
    """The rows of the shard `name`. Raises OSError where they can't be read."""
    columns = [*_ROW_COLUMNS, *score_columns(head_names)]
    described = [column for column, _ in layout.PROFILE] if profile else []
    rows = _table(folder, name, [*columns, *described])
    table = rows.select(columns).to_pydict()
    facts = zip(*(table[column] for column in _ROW_COLUMNS[2:]), strict=True)
    scores = [np.array(table[column], np.float32) for column in columns[len(_ROW_COLUMNS) :]]
    return StoredScores(
        keys=table["key"],
        offsets=table["source_offset"],
        headers=[_header(*fact) for fact in facts],
        scores_RH=np.stack(scores, axis=1),
        profile_R=stored_profile(rows) if profile else None,
    )


def read_fingerprint(folder: str | Path, name: str) -> str:
    """The digest of the files of a folder's shard when it was scored; "" for other kinds of input."""
    return str(layout.read_stats(folder, name).get("fingerprint", ""))


def read_raw_scores(folder: str | Path, names: Iterable[str] | None = None) -> npt.NDArray[np.float32]:
    """The first head's score, or NaN, of every sample of the shards `names`; None means all that are done."""
    chosen = sorted(layout.committed_names(folder)) if names is None else names
    parts = [
        _table(folder, name, ["aesthetic_score"]).column(0).to_numpy().astype(np.float32) for name in chosen
    ]
    return np.concatenate([np.empty(0, np.float32), *parts])


def stored_columns(folder: str | Path) -> dict[str, pa.DataType]:
    """The columns of the scores in `folder`, which are those of each shard; none where nothing is done."""
    for name in sorted(layout.committed_names(folder))[:1]:
        with (
            open_file(join(folder, layout.scores_file(name))) as file,
            pq.ParquetFile(file, pre_buffer=False) as rows,
        ):
            schema = rows.schema_arrow
            return dict(zip(schema.names, schema.types, strict=True))
    return {}


def read_kept(folder: str | Path, name: str, keep: Keep, where: Condition | None) -> pa.Table:
    """`source_shard` and `key` of the rows of a shard that `keep` and `where` keep."""
    wanted = ["source_shard", "key"]
    read = [*wanted, "aesthetic_score", *(where.columns if where else ())]
    table = _table(folder, name, list(dict.fromkeys(read)))
    kept_R = keep(table.column("aesthetic_score").to_numpy().astype(np.float32))
    if where is not None:
        kept_R = kept_R & where.passes(table).all(axis=1)
    return table.select(wanted).filter(pa.array(kept_R))


def _table(folder: str | Path, name: str, columns: list[str]) -> pa.Table:
    with open_file(join(folder, layout.scores_file(name))) as file:
        return read_columns(file, columns)


def _header(
    status: str, message: str | None, width: int | None, height: int | None, format: str | None
) -> ImageHeader:
    return ImageHeader(
        format=format or "",
        width=width or 0,
        height=height or 0,
        route=Route.NOBODY,
        status=Status(status),
        message=message or "",
    )
