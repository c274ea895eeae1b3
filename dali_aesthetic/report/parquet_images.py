"""One image out of a Parquet file with image bytes, by its row."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.shards.formats import looks_like_image
from dali_aesthetic.stores.access import open_file
from dali_aesthetic.types import Buffer

_ROWS_AT_A_TIME = 64


def image_in_row(source: str, row: int) -> Buffer | None:
    """The first value of the row that starts as an image does, plain or in a `{bytes, path}` struct.

    None where the row or an image in it is not there. Reads no more of the file than its row group up to
    the row. Raises what the file system raises.
    """
    with open_file(source) as opened, pq.ParquetFile(opened) as file:
        columns = [field.name for field in file.schema_arrow if _may_hold_bytes(field.type)]
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if row < size:
                return _image(file, group, row, columns)
            row -= size
    return None


def _image(file: pq.ParquetFile, group: int, row: int, columns: list[str]) -> Buffer | None:
    for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=columns):
        if row < len(batch):
            values = (column[row].as_py() for column in batch.columns)
            found = (value.get("bytes") if isinstance(value, dict) else value for value in values)
            return next((one for one in found if one and looks_like_image(one)), None)
        row -= len(batch)
    return None


def _may_hold_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _may_hold_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
