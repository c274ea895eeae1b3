"""Parquet with image bytes: Hugging Face datasets' `{bytes, path}` struct or a list of it, binary columns of
any Arrow type, and base64 text."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.shards.formats import IMAGE_RANK, extension, looks_like_image
from dali_aesthetic.shards.listing import InputError
from dali_aesthetic.shards.opened import DEFAULT_LIMITS, ReadLimits
from dali_aesthetic.stores.access import open_file
from dali_aesthetic.types import Buffer, Sample, Shard, ShardEnd, Status

_ROWS = 256
_READ_BYTES = 8 << 20
_KEYS = ("key", "__key__", "uid", "id", "image_path", "file_name")
"""Columns that hold a sample's key, the best first; without one the key is the row number."""
_IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes", "content", "images")
"""Names of the image column, the likeliest first."""
_MAX_HASH_BYTES = 64
"""The width of SHA-512: values of a fixed width up to it are hashes and ids."""


def read_parquet(shard: Shard, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[Sample | ShardEnd]:
    """Yields a sample for each row in order, then the shard's one ShardEnd. Raises nothing for bad data.

    Samples have no tar entries: kept rows are copied from the file itself. A sample's `offset` is its row;
    its sidecar is a json of its other columns, except binary ones.
    """
    try:
        with open_file(shard.source) as file:
            # Otherwise a row group is read at once; pyarrow writes them of a million rows, 100 GB of images.
            source = pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BYTES)
            column = image_column(source.schema_arrow, shard.column, lambda: _first_texts(source))
            row, warnings = 0, dict[str, None]()
            for batch in source.iter_batches(_ROWS):
                yield from _samples(shard, batch, column, row, limits, warnings)
                row += len(batch)
    except Exception as error:  # fsspec's file systems raise what their clients raise
        yield ShardEnd(shard=shard, error=f"{shard.source} can't be read: {str(error) or repr(error)}")
        return
    yield ShardEnd(shard=shard, warnings=tuple(warnings))


def image_column(
    schema: pa.Schema, wanted: str = "", first_texts: Callable[[], Mapping[str, str]] = dict
) -> str:
    """The name of the column with encoded images. Raises InputError where it is ambiguous or missing.

    `first_texts` gives the first value of each text column; it is called where no column of bytes fits.
    """
    fit = [field.name for field in schema if holds_bytes(field.type)]
    if wanted in fit:
        return wanted
    if wanted or not fit:
        texts = {name: text for name, text in first_texts().items() if wanted in ("", name)}
        encoded = [name for name, text in texts.items() if _is_base64_image(text)]
        if not encoded:
            raise InputError(_no_images(schema, wanted, fit, texts))
        fit = encoded
    single = [name for name in fit if not _is_list(schema.field(name).type)]
    likely = [name for name in _IMAGES if name in fit] or single or fit
    if len(likely) > 1 and likely[0] not in _IMAGES:
        raise InputError(f"the columns {', '.join(fit)} all hold bytes: name one with --image-column")
    return likely[0]


def _no_images(schema: pa.Schema, wanted: str, fit: list[str], texts: Mapping[str, str]) -> str:
    for name, text in texts.items():
        if "://" in text or extension(text) in IMAGE_RANK:
            fix = (
                "download them first, as img2dataset does"
                if "://" in text
                else "give their folder as --input"
            )
            return f"the column {name!r} holds paths or URLs ({text[:80]!r}), not images: {fix}"
    if wanted:
        return f"--image-column {wanted!r} holds no bytes; there are {fit or schema.names}"
    return f"no column holds image bytes; there are {', '.join(f'{f.name} ({f.type})' for f in schema)}"


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of this type may be encoded images for `row_image`."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
    if pa.types.is_dictionary(kind):
        return holds_bytes(kind.value_type)
    if _is_list(kind):
        return pa.types.is_struct(kind.value_type) and holds_bytes(kind.value_type)
    if pa.types.is_fixed_size_binary(kind):
        return bool(kind.byte_width > _MAX_HASH_BYTES)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are text, which may be base64."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _first_texts(source: pq.ParquetFile) -> dict[str, str]:
    names = [field.name for field in source.schema_arrow if is_text(field.type)]
    batch = next(source.iter_batches(_ROWS, columns=names), None) if names else None
    firsts = {name: next((v for v in batch.column(name) if v.is_valid), None) for name in names if batch}
    return {name: bytes(v.as_buffer()).decode(errors="replace") for name, v in firsts.items() if v}


def _is_base64_image(text: str) -> bool:
    try:
        return looks_like_image(base64.b64decode(_without_mime_type(text)[:64], validate=True))
    except ValueError:
        return False


def _without_mime_type(text: str) -> str:
    return text.partition(";base64,")[2] if text.startswith("data:") else text


def row_image(value: pa.Scalar) -> tuple[Buffer | None, str]:
    """The encoded image in a column's value, None for null, and the path beside it or "".

    The image of a list is its first one. Text is base64; where it isn't, its characters are the bytes.
    """
    path = ""
    if _is_list(value.type):
        value = value[0] if value.is_valid and len(value) else pa.scalar(None)
    if pa.types.is_struct(value.type):
        path = value["path"].as_py() or "" if value.type.get_field_index("path") >= 0 else ""
        value = value["bytes"]
    if pa.types.is_dictionary(value.type):
        value = value.value
    if not value.is_valid:
        return None, str(path)
    # Arrow's buffers have signed bytes, where FF is -1.
    data: Buffer = memoryview(value.as_buffer()).cast("B")
    if is_text(value.type):
        try:
            return base64.b64decode(_without_mime_type(bytes(data).decode())), ""
        except (binascii.Error, UnicodeDecodeError):
            pass
    return data, str(path)


def _samples(
    shard: Shard,
    batch: pa.RecordBatch,
    column: str,
    start: int,
    limits: ReadLimits,
    warnings: dict[str, None],
) -> Iterator[Sample]:
    images = batch.column(column)
    if _is_list(images.type) and any(len(value) > 1 for value in images if value.is_valid):
        warnings[f"rows of the column {column!r} have several images: only the first of each is scored"] = (
            None
        )
    others = [field.name for field in batch.schema if field.name != column and not holds_bytes(field.type)]
    rows = _rows(batch.select(others), warnings) if others else [{}] * len(batch)
    named = next((name for name in _KEYS if name in others), "")
    for index, (image, facts) in enumerate(zip(images, rows, strict=True)):
        key = facts.get(named)
        yield _sample(shard, start + index, image, key, facts, limits)


def _rows(batch: pa.RecordBatch, warnings: dict[str, None]) -> list[dict[str, Any]]:
    """The rows as Python values. A column with a value that has none is noted in `warnings`.

    Examples are dates beyond Python's and Latin-1 bytes in a text column. Scoring doesn't need them, and kept
    rows are copied as Arrow.
    """
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except Exception:  # Arrow raises many types, and ImportError for what needs pandas
        columns = {name: _values(batch.column(name), name, warnings) for name in batch.schema.names}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(column: pa.Array, name: str, warnings: dict[str, None]) -> list[Any]:
    try:
        return list(column.to_pylist())
    except Exception:  # as above
        warnings[f"values of the column {name!r} don't convert: they are text or null"] = None
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [bytes(v.as_buffer()).decode(errors="replace") if v.is_valid else None for v in column]
    try:
        return list(column.cast(pa.string()).to_pylist())
    except pa.ArrowException:  # nested
        return [None] * len(column)


def _sample(
    shard: Shard, row: int, image: pa.Scalar, key: Any, facts: dict[str, Any], limits: ReadLimits
) -> Sample:
    data, path = row_image(image)
    status, message = Status.OK, ""
    if data is None:
        only = (
            f", it has only the path {path!r}: embed the bytes, or give the folder as --input" if path else ""
        )
        status, message = Status.MISSING_IMAGE, f"its image is null{only}"
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
