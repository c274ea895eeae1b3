"""Parquet with image bytes: Hugging Face datasets' `{bytes, path}` struct or a list of it, binary columns of
any Arrow type, and base64 text."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice, repeat
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dali_aesthetic.shards.formats import IMAGE_RANK, extension, looks_like_image
from dali_aesthetic.shards.listing import InputError
from dali_aesthetic.shards.opened import DEFAULT_LIMITS, ReadLimits
from dali_aesthetic.stores.access import open_file
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.stores.store import told
from dali_aesthetic.types import Buffer, Sample, Shard, ShardEnd, Status

_READ_BYTES = 8 << 20
_ROWS, _ROW_BYTES = 16, 32 << 20
"""Rows decoded at a time, and their most bytes if each were as large as its whole row group."""
_ENCODED_ROWS = 256
"""Rows decoded at a time of an Arrow dictionary, and rows in which base64 text is looked for."""
_MAX_VALUE_BYTES = 1 << 20
"""A larger value is left out of the sidecar, which may have as many bytes in the scores."""
_HEADER_BYTES, _MAX_HEADER_BYTES = 1 << 13, 16 << 20
_STRUCT = 12
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
        with _opened(shard.source, limits.max_download_bytes) as source:
            column = image_column(source.schema_arrow, shard.column, lambda: _first_texts(source))
            row, warnings = 0, dict[str, None]()
            for group in range(source.metadata.num_row_groups):
                _check_pages(source, group, column, limits.max_page_bytes)
                for image, key, facts in _rows(source, group, column, warnings):
                    yield _sample(shard, row, image, key, facts, limits)
                    row += 1
    except Exception as error:  # fsspec's file systems raise what their clients raise
        yield ShardEnd(shard=shard, error=f"{shard.source} can't be read: {told(error, shard.source)}")
        return
    yield ShardEnd(shard=shard, warnings=tuple(warnings))


class _Source(NamedTuple):
    """An open Parquet file."""

    file: pa.NativeFile
    schema_arrow: pa.Schema
    metadata: pq.FileMetaData

    def batches(self, rows: int, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """A row group's columns, so many rows at a time."""
        # All iterators of a ParquetFile have the batch size of the one that began last.
        options = {"pre_buffer": False, "buffer_size": _READ_BYTES}
        reader = pq.ParquetFile(self.file, metadata=self.metadata, **options)
        yield from reader.iter_batches(rows, [group], columns, use_threads=False)


@contextmanager
def _opened(location: str, max_download_bytes: int) -> Iterator[_Source]:
    """The file at a path or URL, for reading it in parts. Raises OSError."""
    opened = pa.PythonFile(open_file(location, max_download_bytes))
    if not is_url(location):  # and a regular file, which OSFile doesn't check
        opened.close()
        # Arrow reads a path with half the memory and without the interpreter lock.
        opened = pa.OSFile(location)
    with opened as file:
        source = pq.ParquetFile(file)
        yield _Source(file, source.schema_arrow, source.metadata)


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


def _first_texts(source: _Source) -> dict[str, str]:
    names = [field.name for field in source.schema_arrow if is_text(field.type)]
    firsts: dict[str, str] = {}
    if names and source.metadata.num_row_groups:
        size = _rows_at_a_time(source, 0, names)
        for batch in islice(source.batches(size, 0, names), _ENCODED_ROWS // size):
            for name in names:
                if name not in firsts and (value := next((v for v in batch[name] if v.is_valid), None)):
                    firsts[name] = bytes(value.as_buffer()).decode(errors="replace")
            if len(firsts) == len(names):
                break
    return firsts


def _is_base64_image(text: str) -> bool:
    try:
        return looks_like_image(base64.b64decode(_without_mime_type(text)[:64], validate=True))
    except ValueError:
        return False


def _without_mime_type(text: str) -> str:
    return text.partition(";base64,")[2] if text.startswith("data:") else text


def row_image(column: pa.Array, row: int) -> tuple[Buffer | None, str]:
    """The encoded image in a row of a column, None for null, and the path beside it or "".

    The image is a view of the column's buffer where the column has one row; else a copy, as a view would keep
    the other rows in memory. Of a list it is the first one. Text is base64; where it isn't, its characters
    are the bytes.
    """
    cell, path = column.slice(row, 1), ""
    if _is_list(cell.type):
        cell = cell.flatten().slice(0, 1)
    if pa.types.is_struct(cell.type):
        fields = dict(zip(cell.type.names, cell.flatten(), strict=True))  # null where the struct is
        path = str(fields["path"][0].as_py() or "") if "path" in fields and len(cell) else ""
        cell = fields["bytes"]
    if pa.types.is_dictionary(cell.type):
        cell = cell.dictionary.take(cell.indices)
    if not len(cell) or cell.null_count:
        return None, path
    data = _bytes_of(cell)
    if is_text(cell.type):
        try:
            return base64.b64decode(_without_mime_type(bytes(data).decode())), ""
        except (binascii.Error, UnicodeDecodeError):
            pass
    return data if len(column) == 1 and not _is_list(column.type) else bytes(data), path


def _bytes_of(cell: pa.Array) -> memoryview:
    """The bytes of an array's one value, without the copy that Arrow's scalars have of theirs."""
    kind = cell.type
    if pa.types.is_fixed_size_binary(kind):
        start, size = cell.offset * kind.byte_width, kind.byte_width
    elif pa.types.is_binary_view(kind) or pa.types.is_string_view(kind):
        return memoryview(cell[0].as_buffer()).cast("B")
    else:
        wide = pa.types.is_large_binary(kind) or pa.types.is_large_string(kind)
        ends = memoryview(cell.buffers()[1]).cast("B").cast("q" if wide else "i")
        start, end = ends[cell.offset], ends[cell.offset + 1]
        size = end - start
    # Arrow's buffers have signed bytes, where FF is -1.
    return memoryview(cell.buffers()[-1]).cast("B")[start : start + size]


def _rows(
    source: _Source, group: int, column: str, warnings: dict[str, None]
) -> Iterator[tuple[tuple[Buffer | None, str], Any, dict[str, Any]]]:
    """Image with its path, key (None without one) and other columns of each row of a row group.

    Images are decoded one by one. A batch of them would be one buffer, of unknown size: rows that share an
    image in the file have a copy each. It costs no time beside the copy.
    """
    schema = source.schema_arrow
    others = [field.name for field in schema if field.name != column and not holds_bytes(field.type)]
    named = next((name for name in _KEYS if name in others), "")
    facts = _facts(source, group, others, warnings)
    size = _ENCODED_ROWS if pa.types.is_dictionary(schema.field(column).type) else 1
    for batch in source.batches(size, group, [column]):
        images = batch[column]
        if _is_list(images.type) and (pc.max(pc.list_value_length(images)).as_py() or 0) > 1:
            warnings[
                f"rows of the column {column!r} have several images: only the first of each is scored"
            ] = None
        for index in range(len(images)):
            row = next(facts)
            yield row_image(images, index), row.get(named), row


def _facts(
    source: _Source, group: int, columns: list[str], warnings: dict[str, None]
) -> Iterator[dict[str, Any]]:
    """The rows of these columns. Dictionaries are read apart: each batch of theirs has a copy of them."""
    schema = source.schema_arrow
    encoded = [name for name in columns if pa.types.is_dictionary(schema.field(name).type)]
    plain = [name for name in columns if name not in encoded]
    rows = _python_rows(source, group, plain, _rows_at_a_time(source, group, plain), warnings)
    if not encoded:
        return rows
    both = zip(rows, _python_rows(source, group, encoded, _ENCODED_ROWS, warnings), strict=True)
    return ({name: (one | other).get(name) for name in columns} for one, other in both)


def _chunks(source: _Source, group: int, columns: list[str]) -> list[pq.ColumnChunkMetaData]:
    """The parts of a row group that hold these columns."""
    metadata = source.metadata.row_group(group)
    chunks = map(metadata.column, range(metadata.num_columns))
    return [one for one in chunks if f"{one.path_in_schema}.".startswith(tuple(f"{c}." for c in columns))]


def _rows_at_a_time(source: _Source, group: int, columns: list[str]) -> int:
    """Few enough that they fit into `_ROW_BYTES`, though all may have the largest value of the row group."""
    size: int = sum(chunk.total_uncompressed_size for chunk in _chunks(source, group, columns))
    return max(1, min(_ROWS, _ROW_BYTES // max(size, 1)))


def _python_rows(
    source: _Source, group: int, columns: list[str], size: int, warnings: dict[str, None]
) -> Iterator[dict[str, Any]]:
    if not columns:
        yield from repeat({}, source.metadata.row_group(group).num_rows)
        return
    for batch in source.batches(size, group, columns):
        batch = batch.select(columns)
        for name in filter(lambda name: _mean_bytes(batch[name]) > _MAX_VALUE_BYTES, columns):
            warnings[f"values of the column {name!r} above 1 MiB are left out of the scores"] = None
            batch = batch.drop_columns([name])
        yield from converted(batch, warnings)


def _mean_bytes(column: pa.Array) -> int:
    """The bytes of a value, of a dictionary's largest one."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes // len(column))
    values = column.dictionary
    most = pc.max(pc.binary_length(values)).as_py() if is_text(values.type) else values.nbytes
    return int(most or 0)


def converted(batch: pa.RecordBatch, warnings: dict[str, None]) -> list[dict[str, Any]]:
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
    shard: Shard,
    row: int,
    image: tuple[Buffer | None, str],
    key: Any,
    facts: dict[str, Any],
    limits: ReadLimits,
) -> Sample:
    data, path = image
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


def _check_pages(source: _Source, group: int, column: str, max_bytes: int) -> None:
    """Raises ValueError where a page of the row group is too large to be decoded within `max_bytes`.

    Arrow reads a page at once, and decompresses it into a second buffer. pyarrow writes pages of 1024 rows.
    """
    schema = source.schema_arrow
    whole = (column,) if pa.types.is_dictionary(schema.field(column).type) else ()
    columns = [field.name for field in schema if field.name == column or not holds_bytes(field.type)]
    for chunk in _chunks(source, group, columns):
        copies = 1 if chunk.compression == "UNCOMPRESSED" and isinstance(source.file, pa.OSFile) else 2
        most = chunk.total_compressed_size * (copies - 1) + chunk.total_uncompressed_size
        if most > max_bytes and chunk.path_in_schema not in whole:
            most = max(
                compressed * (copies - 1) + size for compressed, size in _page_sizes(source.file, chunk)
            )
        if most > max_bytes:
            raise ValueError(
                f"a page of its column {chunk.path_in_schema!r} takes {most:,} bytes, more than the "
                f"{max_bytes:,} that --memory-budget leaves for it: raise the budget "
                f"{-(-most // max_bytes)}-fold, or write the file anew with smaller row groups"
            )


def _page_sizes(file: pa.NativeFile, chunk: pq.ColumnChunkMetaData) -> Iterator[tuple[int, int]]:
    """Compressed and decompressed bytes of each page of a column chunk, from the pages' headers."""
    start = chunk.data_page_offset
    if chunk.has_dictionary_page:
        start = min(start, chunk.dictionary_page_offset)
    end = start + chunk.total_compressed_size
    while start < end:
        try:
            header, length = _thrift(file.read_at(_HEADER_BYTES, start), 0)
        except IndexError:  # long statistics
            header, length = _thrift(file.read_at(_MAX_HEADER_BYTES, start), 0)
        decompressed, compressed = header[2], header[3]
        if min(decompressed, compressed) < 0:
            raise ValueError(f"the page at byte {start:,} has a negative size")
        yield compressed, decompressed
        start += length + compressed


def _thrift(data: bytes, at: int, kind: int = _STRUCT) -> tuple[Any, int]:
    """A value in Thrift's compact protocol, a struct as its integers and structs by number, and its end.

    For `PageHeader` of https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
    """
    if kind == _STRUCT:
        fields, number = {}, 0
        while byte := data[at]:
            number, at = (number + (byte >> 4), at + 1) if byte >> 4 else _thrift(data, at + 1, 4)
            fields[number], at = _thrift(data, at, byte & 15)
        return fields, at + 1
    if kind in (1, 2):  # true, false
        return None, at
    if kind in (3, 7):  # a byte, a double
        return None, at + (1 if kind == 3 else 8)
    if kind not in (4, 5, 6, 8):
        raise ValueError(f"a page header has a field of the unknown type {kind}")
    value = shift = 0
    while data[at] > 127:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    value |= data[at] << shift
    return (None, at + 1 + value) if kind == 8 else ((value >> 1) ^ -(value & 1), at + 1)
