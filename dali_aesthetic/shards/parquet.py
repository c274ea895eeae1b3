"""Parquet with image bytes: Hugging Face datasets' `{bytes, path}` struct and plain binary columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.shards.listing import InputError
from dali_aesthetic.shards.opened import DEFAULT_LIMITS, ReadLimits
from dali_aesthetic.stores.access import open_file
from dali_aesthetic.types import Buffer, Sample, Shard, ShardEnd, Status

_ROWS = 256
_READ_BYTES = 8 << 20
_KEYS = ("key", "__key__", "uid", "id", "image_path", "file_name")
"""Columns that hold a sample's key, the best first; without one the key is the row number."""
_IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes", "content")
"""Names of the image column, the likeliest first."""


def read_parquet(shard: Shard, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[Sample | ShardEnd]:
    """Yields a sample for each row in order, then the shard's one ShardEnd. Raises nothing for bad data.

    Samples have no tar entries: kept rows are copied from the file itself. A sample's `offset` is its row;
    its sidecar is a json of its other columns, except binary ones.
    """
    try:
        with open_file(shard.source) as file:
            # Otherwise a row group is read at once; pyarrow writes them of a million rows, 100 GB of images.
            source = pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BYTES)
            column = image_column(source.schema_arrow, shard.column)
            row, odd_columns = 0, dict[str, None]()
            for batch in source.iter_batches(_ROWS):
                yield from _samples(shard, batch, column, row, limits, odd_columns)
                row += len(batch)
    except Exception as error:  # fsspec's file systems raise what their clients raise
        yield ShardEnd(shard=shard, error=f"{shard.source} can't be read: {str(error) or repr(error)}")
        return
    warnings = (f"values of the column {name!r} don't convert: they are text or null" for name in odd_columns)
    yield ShardEnd(shard=shard, warnings=tuple(warnings))


def image_column(schema: pa.Schema, wanted: str = "") -> str:
    """The name of the column with encoded images. Raises InputError where it is ambiguous."""
    fit = [field.name for field in schema if _holds_bytes(field.type)]
    if wanted:
        if wanted not in fit:
            raise InputError(f"--image-column {wanted!r} holds no bytes; there are {fit or schema.names}")
        return wanted
    if not fit:
        raise InputError(f"no column holds image bytes; there are {', '.join(schema.names)}")
    likely = [name for name in _IMAGES if name in fit] or fit
    if len(likely) > 1 and likely[0] not in _IMAGES:
        raise InputError(f"the columns {', '.join(fit)} all hold bytes: name one with --image-column")
    return likely[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _samples(
    shard: Shard,
    batch: pa.RecordBatch,
    column: str,
    start: int,
    limits: ReadLimits,
    odd_columns: dict[str, None],
) -> Iterator[Sample]:
    images = batch.column(column)
    if pa.types.is_struct(images.type):
        images = images.field("bytes")
    others = [field.name for field in batch.schema if field.name != column and not _holds_bytes(field.type)]
    rows = _rows(batch.select(others), odd_columns) if others else [{}] * len(batch)
    named = next((name for name in _KEYS if name in others), "")
    for index, (image, facts) in enumerate(zip(images, rows, strict=True)):
        key = facts.get(named)
        yield _sample(shard, start + index, image, key, facts, limits)


def _rows(batch: pa.RecordBatch, odd_columns: dict[str, None]) -> list[dict[str, Any]]:
    """The rows as Python values. A column with a value that has none is noted in `odd_columns`.

    Examples are dates beyond Python's and Latin-1 bytes in a text column. Scoring doesn't need them, and kept
    rows are copied as Arrow.
    """
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except Exception:  # Arrow raises many types, and ImportError for what needs pandas
        columns = {name: _values(batch.column(name), name, odd_columns) for name in batch.schema.names}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(column: pa.Array, name: str, odd_columns: dict[str, None]) -> list[Any]:
    try:
        return list(column.to_pylist())
    except Exception:  # as above
        odd_columns[name] = None
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [bytes(v.as_buffer()).decode(errors="replace") if v.is_valid else None for v in column]
    try:
        return list(column.cast(pa.string()).to_pylist())
    except pa.ArrowException:  # nested
        return [None] * len(column)


def _sample(
    shard: Shard, row: int, image: pa.Scalar, key: Any, facts: dict[str, Any], limits: ReadLimits
) -> Sample:
    # Arrow's buffers have signed bytes, where FF is -1.
    data: Buffer | None = memoryview(image.as_buffer()).cast("B") if image.is_valid else None
    status, message = Status.OK, ""
    if data is None:
        status, message = Status.MISSING_IMAGE, "its image is null"
    elif not len(data):
        status, message = Status.EMPTY, "its image has no bytes"
    elif len(data) > limits.max_member_bytes:
        limit = limits.max_member_bytes
        status, message = Status.TOO_LARGE, f"its image has {len(data):,} bytes, the limit is {limit:,}"
    return Sample(
        shard=shard,
        key=str(row) if key is None else str(key),
        image=data if status is Status.OK else None,
        entries=(),
        source=shard.source,
        offset=row,
        sidecar=json.dumps(facts, default=str).encode() if facts else None,
        status=status,
        message=message,
    )
