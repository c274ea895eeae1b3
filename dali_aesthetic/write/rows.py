"""The rows of a scores file: one for every input sample, kept or not, with the fields of its json.

All files of a run have one schema, which is known before the first of them: the columns of a run, those of
its heads, `FIELDS`, the fields chosen by `--columns`, and `json` for every other field.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.config import COLUMN_TYPES, column_type
from dali_aesthetic.layout import DERIVED, FILES, PROFILE
from dali_aesthetic.types import ImageHeader, Sample, Status
from dali_aesthetic.write.commit import Part
from dali_aesthetic.write.json_fields import NO_REST, REST, Field, FieldColumns
from dali_aesthetic.write.writers import ParquetWriter

_NO_NUMBER = "the model gave no number"
MOST_PIXELS = 2**31 - 1
"""The longest side that the int32 columns of width and height hold."""
_COLUMNS = {
    **dict.fromkeys(("key", "status", "error_message"), pa.string()),
    **dict.fromkeys(("width", "height"), pa.int32()),
    "format": pa.string(),
    "num_bytes": pa.int64(),
    **dict.fromkeys(("aesthetic_score", "aesthetic_score_01"), pa.float32()),
    "kept": pa.bool_(),
    "source_shard": pa.string(),
    "source_offset": pa.int64(),
    "output_shard": pa.string(),
}
_DECIDED = ("kept", "output_shard")
_NOT_AESTHETIC = ("punsafe", "pwatermark")
_PROFILE = {name: pa.from_numpy_dtype(kind) if kind != "U32" else pa.string() for name, kind in PROFILE}
_KINDS = dict(zip(COLUMN_TYPES, (pa.string(), pa.int64(), pa.float64(), pa.bool_()), strict=True))
FIELDS = {
    **dict.fromkeys(("url", "caption", "text", "key", "uid", "status", "error_message"), "string"),
    **dict.fromkeys(("width", "height", "original_width", "original_height"), "int"),
    **dict.fromkeys(("exif", "md5", "sha256", "sha512"), "string"),
    **dict.fromkeys(("SAMPLE_ID", "hash"), "int"),
    **dict.fromkeys(("similarity", "punsafe", "pwatermark", "aesthetic", "AESTHETIC_SCORE"), "float"),
    **dict.fromkeys(("NSFW", "LICENSE", "LANGUAGE"), "string"),
}
"""The fields that img2dataset, LAION and DataComp write, with their kinds. Each is a column of every run."""
_FORMAT = 3
"""Raised when the columns of every run change."""
CLASH_PREFIX = "json_"
_GROUP_ROWS, _GROUP_BYTES = 65_536, 16 << 20


def read_columns(file: IO[bytes], columns: list[str]) -> pa.Table:
    """These columns of a Parquet file, read in this thread alone.

    pq.read_table has threads that may let go of a Python file after it returned, which aborts a process that
    ends meanwhile (apache/arrow#34314, #50482).
    """
    with pq.ParquetFile(file, pre_buffer=False) as rows:
        return rows.read(columns, use_threads=False).select(columns)


def score_columns(head_names: Sequence[str]) -> list[str]:
    """The column of each head: `aesthetic_score` for the first, which decides what is kept. `punsafe`
    and `pwatermark` have LAION's own names as columns.

    Raises ValueError for no head, for one of those two as the first, and for two heads with one column.
    """
    if not head_names:
        raise ValueError("head_names is empty; at least one head is needed to decide what is kept")
    if head_names[0] in _NOT_AESTHETIC:
        raise ValueError(f"the head {head_names[0]!r} is first, so what is bad would be kept; put it second")
    columns = ["aesthetic_score"]
    columns += [name if name in _NOT_AESTHETIC else f"aesthetic_score_{name}" for name in head_names[1:]]
    if len(set(columns) - {*list(_COLUMNS)[8:], REST}) < len(columns):
        raise ValueError(f"two heads would share a column in {list(head_names)}; rename one of them")
    return columns


Keep = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.bool_]]
"""Maps raw scores of the first head to marks. NaN (not scored) is never kept."""


class Condition(Protocol):
    """Judges rows by the `columns` that it reads. It has `conjuncts`, in SQL."""

    @property
    def columns(self) -> list[str]: ...

    @property
    def conjuncts(self) -> tuple[str, ...]: ...

    def removed(self, passes_RC: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """The rows that each part removes, int64 [2, C]: alone, and after the parts before it."""
        ...

    def passes(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Marks, bool [R, C]: a row is kept if all of its marks are true."""
        ...


def condition_columns(
    head_names: Sequence[str], columns: Sequence[str], profile: bool = False
) -> dict[str, pa.DataType]:
    """The columns that a condition may read while rows are written: all but what it decides."""
    names = score_columns(head_names)
    kinds = {**_COLUMNS, **dict.fromkeys(names, pa.float32()), **(_PROFILE if profile else {})}
    kinds |= {field.column: field.kind for field in json_columns(columns, names)}
    return {name: kind for name, kind in kinds.items() if name not in _DECIDED}


class ScoreRows(Part):
    """The scores file of one shard. Rows are held in memory (about 0.5 KB each, and the json) until they fill
    a row group, or until the commit.

    `output_shard` is "" where each kept image is a file. `fields` are those of `json_columns`. `where` keeps
    some of the rows that are marked as kept. `profile` adds the columns of `layout.PROFILE`. `each` is called
    with the table of each row group.
    """

    def __init__(
        self,
        final: Path,
        head_names: Sequence[str],
        output_shard: str,
        fields: Sequence[Field],
        where: Condition | None = None,
        profile: bool = False,
    ) -> None:
        super().__init__(final)
        self._profile = profile
        self._score_names = score_columns(head_names)
        self._output_shard = output_shard
        self._statuses: Counter[str] = Counter()
        self._tables: list[pa.Table] = []
        self._writer = ParquetWriter(final)
        self.fields = FieldColumns(fields)
        self._where = where
        self.each: Callable[[pa.Table], None] | None = None

    def add(
        self,
        samples: Sequence[Sample],
        headers: Sequence[ImageHeader],
        scores_RH: npt.NDArray[np.float32],
        kept_R: npt.NDArray[np.bool_],
        profile_R: npt.NDArray[np.void] | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Appends rows in input order; a score that is NaN is written as null.

        Returns marks, bool [R, 1 + C]: `kept_R` and the parts of the condition; rows with all are kept. Where
        a row group ends depends on the rows alone, not on the calls. Raises OSError naming the file.
        """
        if profile_R is None:
            profile_R = np.zeros(len(samples), PROFILE)
        marks, start = [], 0
        for end, sample in enumerate(samples, start=1):
            self.fields.add(sample.sidecar)
            if self.fields.num_bytes >= _GROUP_BYTES or self.fields.num_rows >= _GROUP_ROWS:
                rows = slice(start, end)
                facts = headers[rows], scores_RH[rows], kept_R[rows], profile_R[rows]
                marks.append(self._append(samples[rows], *facts))
                self._write()
                start = end
        if start < len(samples) or not marks:
            facts = headers[start:], scores_RH[start:], kept_R[start:], profile_R[start:]
            marks.append(self._append(samples[start:], *facts))
        return np.concatenate(marks)

    def _append(
        self,
        samples: Sequence[Sample],
        headers: Sequence[ImageHeader],
        scores_RH: npt.NDArray[np.float32],
        kept_R: npt.NDArray[np.bool_],
        profile_R: npt.NDArray[np.void],
    ) -> npt.NDArray[np.bool_]:
        worst = [
            header if sample.status is Status.OK else sample
            for sample, header in zip(samples, headers, strict=True)
        ]
        statuses = [one.status.value for one in worst]
        messages = [
            one.message or (_NO_NUMBER if nan and one.status is Status.OK else None)
            for one, nan in zip(worst, np.isnan(scores_RH[:, 0]), strict=True)
        ]
        columns = score_table(
            self._score_names,
            scores_RH,
            kept_R,
            **_known(samples, headers),
            status=pa.array(statuses, pa.string()),
            error_message=_strings(messages),
            output_shard=pa.nulls(len(samples), pa.string()),
        )
        if self._profile:
            columns |= profile_columns(profile_R, np.array(statuses) == Status.OK.value)
        marks_RC = kept_R[:, None]
        if self._where is not None and len(samples):  # not in the thread that commits
            facts = columns | self.fields.latest(len(samples), self._where.columns)
            table = pa.table({name: facts[name] for name in self._where.columns})
            marks_RC = np.hstack([marks_RC, self._where.passes(table)])
            kept_R = np.logical_and.reduce(marks_RC, axis=1)
        columns["kept"] = pa.array(kept_R, pa.bool_())
        columns["output_shard"] = _strings(
            [self._kept_as(sample) if one else None for sample, one in zip(samples, kept_R, strict=True)]
        )
        self._statuses.update(statuses)
        self._tables.append(pa.table(columns))
        return marks_RC

    def _kept_as(self, sample: Sample) -> str:
        return self._output_shard or f"{FILES}/{sample.files[0][0]}"

    def _write(self) -> None:
        table = pa.concat_tables(self._tables).combine_chunks()
        for name, column in self.fields.take().items():
            table = table.append_column(name, column)
        self._tables = []
        self._writer.add(table)
        if self.each is not None:
            self.each(table)

    def finish(self) -> None:
        """See `Part`."""
        if self.fields.num_rows or not self._writer.is_open:
            scores_RH = np.empty((0, len(self._score_names)), np.float32)
            self._append((), (), scores_RH, np.empty(0, np.bool_), np.empty(0, PROFILE))
            self._write()
        self._writer.finish()

    def abandon(self) -> None:
        """See `Part`."""
        self._writer.abandon()

    def statuses(self) -> dict[str, int]:
        """The number of samples by status, in the order of `Status`, without statuses that don't occur."""
        return {status.value: self._statuses[status.value] for status in Status if self._statuses[status]}

    def warnings(self) -> tuple[str, ...]:
        """Warnings about json files that the scores leave out."""
        count = self.fields.num_ignored
        return (f"json files left out of the scores, unreadable or above 1 MiB: {count}",) if count else ()


def _known(samples: Sequence[Sample], headers: Sequence[ImageHeader]) -> dict[str, pa.Array]:
    """The columns that are known before decoding."""
    return {
        "key": _strings([sample.key for sample in samples]),
        "width": pa.array([_side(header.width) for header in headers], pa.int32()),
        "height": pa.array([_side(header.height) for header in headers], pa.int32()),
        "format": pa.array([header.format or None for header in headers], pa.string()),
        "num_bytes": pa.array([None if s.image is None else len(s.image) for s in samples], pa.int64()),
        "source_shard": _strings([sample.source for sample in samples]),
        "source_offset": pa.array([sample.offset for sample in samples], pa.int64()),
    }


def known_columns(chosen: Sequence[str], score_names: Sequence[str]) -> dict[str, pa.DataType]:
    """The columns that a condition may read before decoding."""
    fields = {field.column: field.kind for field in json_columns(chosen, score_names)}
    return {name: _COLUMNS[name] for name in _known((), ())} | fields


def known_passes(
    condition: Condition, fields: Sequence[Field], samples: Sequence[Sample], headers: Sequence[ImageHeader]
) -> npt.NDArray[np.bool_]:
    """Where the condition on `known_columns` holds, bool [R]; `fields` are those of `json_columns`."""
    table = _known(samples, headers)
    if not table.keys() >= {*condition.columns}:
        rest = REST in condition.columns  # which holds the fields that have no column
        read = FieldColumns([one for one in fields if rest or one.column in condition.columns])
        for sample in samples:
            read.add(sample.sidecar)
        table |= read.take()
    passes_RC = condition.passes(pa.table({name: table[name] for name in condition.columns}))
    return np.asarray(passes_RC.all(axis=1), np.bool_)


def score_table(
    score_names: Sequence[str],
    scores_RH: npt.NDArray[np.float32],
    kept_R: npt.NDArray[np.bool_],
    **facts: pa.Array,
) -> dict[str, pa.Array]:
    """The columns of a scores file in order: `facts`, and those made of scores and marks."""
    raw_R = scores_RH[:, 0]
    columns = {
        **facts,
        "aesthetic_score": pa.array(raw_R, pa.float32(), from_pandas=True),
        "aesthetic_score_01": pa.array(np.clip(raw_R / np.float32(10), 0, 1), pa.float32(), from_pandas=True),
        "kept": pa.array(kept_R, pa.bool_()),
    }
    others = {
        name: pa.array(scores_RH[:, head], pa.float32(), from_pandas=True)
        for head, name in enumerate(score_names[1:], start=1)
    }
    return {name: columns[name] for name in _COLUMNS} | others


def import_pandas() -> None:
    """Makes pyarrow import pandas, if installed, now and not during the first commit."""
    pa.array([])


def _side(pixels: int) -> int | None:
    """Null where unknown or too large for the column: a damaged PNG header may claim up to 2**32 - 1."""
    return pixels if 0 < pixels <= MOST_PIXELS else None


def _strings(texts: Sequence[str | None]) -> pa.Array:
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:  # a file name that is not UTF-8
        clean = (None if text is None else text.encode("utf-8", "backslashreplace") for text in texts)
        return pa.array(clean, pa.binary()).cast(pa.string())


def json_columns(chosen: Sequence[str], score_names: Sequence[str]) -> list[Field]:
    """The columns for fields of the json: `FIELDS`, those `chosen`, as `Config.columns` has them, and `json`.

    Names that differ in case alone are one, as they are for DuckDB and Spark; one of `FIELDS` that is chosen
    gets the chosen kind and spelling. A column gets the prefix `json_` until it has a name of its own.
    """
    wanted = {name.casefold(): (name, kind) for name, kind in FIELDS.items()}
    for text in filter(NO_REST.__ne__, chosen):
        name, kind = column_type(text)
        fold = name.casefold()
        wanted[fold] = (name, kind or wanted.get(fold, ("", "string"))[1])
    taken = {name.casefold() for name in (*_COLUMNS, *score_names, REST, *DERIVED, *_PROFILE)}
    fields = []
    for name, kind in wanted.values():
        column = name
        while column.casefold() in taken:
            column = CLASH_PREFIX + column
        taken.add(column.casefold())
        fields.append(Field(name, column, _KINDS[kind]))
    return fields if NO_REST in chosen else [*fields, Field(REST, REST, pa.string())]


def profile_columns(profile_R: npt.NDArray[np.void], known_R: npt.NDArray[np.bool_]) -> dict[str, pa.Array]:
    """The columns of `layout.PROFILE`, null but for rows that are `known_R`."""
    gone_R = ~known_R
    columns = {name: pa.array(profile_R[name], kind, mask=gone_R) for name, kind in _PROFILE.items()}
    for name in ("jpeg_quality", "num_frames"):  # 0 is unknown
        columns[name] = pa.array(profile_R[name], _PROFILE[name], mask=gone_R | (profile_R[name] == 0))
    return columns


def stored_profile(table: pa.Table) -> npt.NDArray[np.void]:
    """The rows that `profile_columns` made columns of."""
    profile_R = np.zeros(len(table), PROFILE)
    for name, kind in _PROFILE.items():
        nothing = pa.scalar(
            "" if kind == pa.string() else 0, pa.string() if kind == pa.string() else pa.int8()
        )
        profile_R[name] = table[name].fill_null(nothing.cast(kind)).to_numpy()
    return profile_R


def schema_identity(chosen: Sequence[str], profile: bool = False) -> dict[str, Any]:
    """What determines the columns of a run's scores beside its heads: no output may mix two schemas."""
    return {"scores_format": _FORMAT, "columns": list(chosen)} | ({"profile": True} if profile else {})
