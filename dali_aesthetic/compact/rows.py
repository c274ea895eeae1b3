"""Rows of several scores files as one table, whatever the json fields of each were made of."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.write.parquet_stream import COMPRESSION

_WHERE = "output_shard"
_ROW_GROUP = 65_536


def merge_rows(tables: Sequence[pa.Table], output_shard: str) -> pa.Table:
    """All rows in order, with the columns in the order they first appear in; `output_shard` is the new one.

    A json field that is a number in one shard and text in another becomes text, as it does within a shard.
    """
    types: dict[str, pa.DataType] = {}
    for table in tables:
        for field in table.schema:
            types[field.name] = _common(types.get(field.name, field.type), field.type)
    for name in [name for name, kind in types.items() if kind == pa.float64()]:
        if not all(_are_doubles(table.column(name)) for table in tables if name in table.schema.names):
            types[name] = pa.string()
    schema = pa.schema(list(types.items()))
    merged = pa.concat_tables([_fitted(table, schema) for table in tables])
    where = schema.get_field_index(_WHERE)
    return merged.set_column(where, _WHERE, pa.array([output_shard] * len(merged), pa.string()))


def to_parquet(table: pa.Table) -> pa.Buffer:
    """The whole file; the same rows give the same bytes with the same pyarrow."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=_ROW_GROUP, **COMPRESSION)
    return sink.getvalue()


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other:
        return one
    return pa.float64() if {one, other} == {pa.int64(), pa.float64()} else pa.string()


def _are_doubles(column: pa.ChunkedArray) -> bool:
    """As within a shard: whole numbers of more digits than a double has stay whole, as text."""
    return column.type != pa.int64() or all(v is None or int(float(v)) == v for v in column.to_pylist())


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        if field.name not in table.schema.names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(field.name)
        columns.append(column if column.type == field.type else _cast(column, field.type))
    return pa.table(columns, schema=schema)


def _cast(column: pa.ChunkedArray, type: pa.DataType) -> pa.Array:
    if type == pa.float64():
        return pa.array([None if v is None else float(v) for v in column.to_pylist()], type)
    # As the rows of one shard are written: what is no text is json.
    return pa.array([None if v is None else json.dumps(v) for v in column.to_pylist()], type)
