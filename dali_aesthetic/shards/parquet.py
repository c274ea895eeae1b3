"""Parquet with image bytes: Hugging Face datasets' `{bytes, path}` struct and plain binary columns."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from dali_aesthetic.shards import earlier_runs
from dali_aesthetic.shards.formats import IMAGE_RANK, extension
from dali_aesthetic.shards.inputs import InputError
from dali_aesthetic.shards.listing import common_parent, expand_braces, walk
from dali_aesthetic.shards.opened import DEFAULT_LIMITS, ReadLimits, is_url
from dali_aesthetic.stores.access import list_files, open_file
from dali_aesthetic.stores.location import fixed_root, parent
from dali_aesthetic.stores.store import StoreUnusable
from dali_aesthetic.types import Buffer, Sample, Shard, ShardEnd, Status

_ROWS = 256
_READ_BYTES = 8 << 20
_KEYS = ("key", "__key__", "uid", "id", "image_path", "file_name")
"""Columns that name a sample, the best first; without one its row number does."""
_IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes", "content")
"""Names of the column of images, the likeliest first."""


def name_parquet(texts: Sequence[str]) -> bool:
    """Whether every input is Parquet: a file or pattern that ends so, or a folder of such files."""
    return bool(texts) and all(text.lower().endswith(".parquet") or _is_folder(text) for text in texts)


def parquet_shards(texts: Sequence[str], column: str = "", exclude: str = "") -> list[Shard]:
    """A shard for each file, named by its path below their common folder. Raises InputError for none.

    `column` is the one with the images; where it is empty each file's is found by type and name.
    """
    paths = sorted({path for text in texts for path in _files(text, exclude)})
    if not paths:
        raise InputError(f"{', '.join(texts)}: no .parquet there (looked from {os.getcwd()})")
    root = common_parent(parent(path) for path in paths)
    absolute = [path if is_url(path) else os.path.abspath(path) for path in paths]
    names = [path.removeprefix(root).lstrip("/")[: -len(".parquet")] for path in absolute]
    if len(set(names)) < len(names):
        ((name, _),) = Counter(names).most_common(1)
        first, second, *_ = (path for path, one in zip(paths, names, strict=True) if one == name)
        raise InputError(f"{first} and {second} would both be named {name!r}; remove or rename one of them")
    return [
        Shard(index=index, name=name, kind="parquet", source=path, column=column)
        for index, (name, path) in enumerate(zip(names, paths, strict=True))
    ]


def read_parquet(shard: Shard, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[Sample | ShardEnd]:
    """Yields a sample for each row in order, then the shard's one ShardEnd. Raises nothing for bad data.

    Samples have no tar entries: the rows that are kept are filtered from the file itself. A sample's
    `offset` is its row; its other columns, but for binary ones, are its json.
    """
    try:
        with open_file(shard.source) as file:
            # Else all of a row group is read at once; pyarrow makes them of a million rows, 100 GB of images.
            source = pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BYTES)
            column = image_column(source.schema_arrow, shard.column)
            row = 0
            for batch in source.iter_batches(_ROWS):
                yield from _samples(shard, batch, column, row, limits)
                row += len(batch)
    except Exception as error:  # fsspec's file systems raise what their clients raise
        yield ShardEnd(shard=shard, error=f"{shard.source} can't be read: {str(error) or repr(error)}")
        return
    yield ShardEnd(shard=shard)


def image_column(schema: pa.Schema, wanted: str = "") -> str:
    """The name of the column with encoded images. Raises InputError where that is not clear."""
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
    shard: Shard, batch: pa.RecordBatch, column: str, start: int, limits: ReadLimits
) -> Iterator[Sample]:
    images = batch.column(column)
    if pa.types.is_struct(images.type):
        images = images.field("bytes")
    others = [field.name for field in batch.schema if field.name != column and not _holds_bytes(field.type)]
    rows = batch.select(others).to_pylist() if others else [{}] * len(batch)
    named = next((name for name in _KEYS if name in others), "")
    for index, (image, facts) in enumerate(zip(images, rows, strict=True)):
        key = facts.get(named)
        yield _sample(shard, start + index, image, key, facts, limits)


def _sample(
    shard: Shard, row: int, image: pa.Scalar, key: Any, facts: dict[str, Any], limits: ReadLimits
) -> Sample:
    data: Buffer | None = memoryview(image.as_buffer()) if image.is_valid else None
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


def _is_folder(text: str) -> bool:
    """Whether a folder holds Parquet and neither tars nor images, beside which Parquet is their metadata."""
    if is_url(text) or not os.path.isdir(text):
        return False
    found = False
    for name in walk(text):
        suffix = extension(name)
        if suffix == "tar" or suffix in IMAGE_RANK:
            return False
        found = found or suffix == "parquet"
    return found


def _files(text: str, exclude: str) -> list[str]:
    if not is_url(text) and os.path.isdir(text):
        names = list(walk(text, exclude))
        below = [name for name in names if extension(name) == "parquet"]
        records = [name for name in names if name.endswith(earlier_runs.RECORD)]
        taken = earlier_runs.without_copies(text, below, records, "parquet")
        return [os.path.join(text, name) for name in taken]
    if os.path.isfile(text):
        return [text]  # its name may hold what a pattern would take for its own: `a[1].parquet`
    members = expand_braces(text)
    if is_url(text):
        return [path for one in members for path in _remote(one, exclude)]
    found = [path for one in members for path in (glob.glob(one, recursive=True) or _named(one))]
    output = os.path.join(os.path.abspath(exclude), "") if exclude else "\0"
    return [path for path in found if not os.path.abspath(path).startswith(output)]


def _named(path: str) -> list[str]:
    raise InputError(f"{path} does not exist (looked for from {os.getcwd()})")


def _remote(url: str, exclude: str) -> list[str]:
    if not glob.has_magic(url):
        return [url]
    root = fixed_root(url)
    fits = re.compile(glob_translate(url))
    below = exclude.rstrip("/") + "/" if exclude else "\0"
    try:
        found = [f"{root}/{name}" for name in list_files(root)]
    except StoreUnusable as error:
        raise InputError(str(error)) from error
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{url} can't be listed: {error}") from error
    return [path for path in found if fits.match(path) and not path.startswith(below)]
