"""Fields of images in a `metadata.jsonl`, `.csv` or `.parquet` of their folder or one above it.

The convention of Hugging Face's ImageFolder: a column `file_name` holds the image's path relative to the
metadata file. Of several rows for an image the one nearest to it is taken, then the first.
"""

from __future__ import annotations

import csv
import json
import os
import posixpath
from codecs import BOM_UTF8
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dali_aesthetic.shards.formats import extension
from dali_aesthetic.shards.oddities import Oddities
from dali_aesthetic.stores.access import open_regular

_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_COLUMN = "file_name"
_MOST_ROW_BYTES, _MOST_BYTES = 16 << 20, 256 << 20
"""Of a row, and of the rows of a shard."""
_UNREADABLE = "metadata files left out, for they can't be read or have no column file_name"
_ERRORS = (OSError, ValueError, KeyError, pa.ArrowException)
csv.field_size_limit(_MOST_ROW_BYTES)


def is_metadata(path: str) -> bool:
    """Whether a file is called as metadata is."""
    return path.rpartition("/")[2] in _NAMES


def covering(image: str, files: Collection[str]) -> Iterator[str]:
    """Those of the metadata `files` (relative paths) that may have a row of `image`, the nearest first."""
    folder = image
    while folder:
        folder = folder.rpartition("/")[0]
        yield from (path for name in _NAMES if (path := posixpath.join(folder, name)) in files)


def survey(root: str, files: Iterable[str], images: Collection[str], oddities: Oddities) -> list[str]:
    """The metadata `files` that can be read; counts what they and the `images` lack."""
    usable: list[str] = []
    taken: set[str] = set()
    for file in _nearest_first(files):
        own: set[str] = set()
        try:
            for name, _ in _names(os.path.join(root, file)):
                image = _path(file, name) if name else ""
                if not image:
                    oddities.add("rows of metadata that can't be read", file)
                elif image not in images:
                    oddities.add("rows of metadata without an image", f"{file}: {name}")
                elif image in taken or image in own:
                    oddities.add("rows of metadata left out, for their image has one", f"{file}: {name}")
                else:
                    own.add(image)
        except _ERRORS as error:
            oddities.add(_UNREADABLE, f"{file}: {error}")
        else:
            taken |= own
            usable.append(file)
    there = frozenset(usable)
    for image in sorted(images) if there else ():
        if image not in taken and any(covering(image, there)):
            oddities.add("images without a row in their metadata", image)
    return usable


def read_rows(root: str, files: Sequence[str], oddities: Oddities) -> dict[str, bytes]:
    """By image, its row among the metadata files of a shard's `files`, as json."""
    rows: dict[str, bytes] = {}
    num_bytes = 0
    for file in _nearest_first(filter(is_metadata, files)):
        path = os.path.join(root, file)
        wanted = {hash(image): image for image in files if image not in rows}
        try:
            hashes, places = _index(path, file, os.stat(path).st_mtime_ns)
            chosen = np.flatnonzero(np.isin(hashes, np.fromiter(wanted, np.int64, len(wanted))))
            for row, content in zip(chosen.tolist(), _contents(path, places[chosen].tolist()), strict=True):
                image = wanted[int(hashes[row])]
                num_bytes += len(content)
                if num_bytes > _MOST_BYTES:
                    oddities.add(
                        f"rows of metadata left out, above {_MOST_BYTES >> 20} MiB in a shard", image
                    )
                else:
                    rows.setdefault(image, content)
        except _ERRORS as error:
            oddities.add(_UNREADABLE, f"{file}: {error}")
    return rows


def _nearest_first(files: Iterable[str]) -> list[str]:
    return sorted(files, key=lambda file: (-file.count("/"), _NAMES.index(file.rpartition("/")[2]), file))


def _path(file: str, name: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(file), name))


@lru_cache(maxsize=4)
def _index(path: str, file: str, changed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The hashes of the images' paths and the places of their rows. Made once for all shards of a process."""
    pairs = ((hash(_path(file, name)), place) for name, place in _names(path) if name)
    table = np.fromiter(pairs, [("hash", np.int64), ("place", np.int64)])
    return table["hash"], table["place"]


def _names(path: str) -> Iterator[tuple[str | None, int]]:
    """`file_name` and place of each row: its offset in bytes, in Parquet its number. None for a bad row.

    Raises OSError, ValueError and Arrow's errors for a file that can't be read or has no such column.
    """
    if extension(path) == "parquet":
        with open_regular(path) as file, pq.ParquetFile(file) as rows:
            batches = rows.iter_batches(columns=[_COLUMN])
            names = (name for batch in batches for name in batch[_COLUMN].to_pylist())
            yield from ((name if isinstance(name, str) else None, row) for row, name in enumerate(names))
        return
    with open_regular(path) as file:
        if extension(path) == "csv":
            column = (lines := _Lines(file)).header().index(_COLUMN)
            yield from ((row[column] if len(row) > column else None, place) for row, place in lines)
            return
        place = 0
        while line := file.readline(_MOST_ROW_BYTES):
            if line.strip():
                yield _name_in(line), place
            place += len(line)


def _name_in(line: bytes) -> str | None:
    try:
        name = json.loads(line.removeprefix(BOM_UTF8))[_COLUMN]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def _contents(path: str, places: Sequence[int]) -> Iterator[bytes]:
    """The rows at `places`, which rise, as json."""
    with open_regular(path) as file:
        if extension(path) == "parquet":
            yield from map(_json, _parquet_rows(file, places))
        elif extension(path) == "csv":
            header = _Lines(file).header()
            for place in places:
                file.seek(place)
                yield _json(dict(zip(header, next(iter(_Lines(file)))[0], strict=False)))
        else:
            for place in places:
                file.seek(place)
                yield file.readline(_MOST_ROW_BYTES).removeprefix(BOM_UTF8).strip()


def _json(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode(errors="replace")


def _parquet_rows(file: IO[bytes], places: Sequence[int]) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(file) as rows:
        sizes = [rows.metadata.row_group(group).num_rows for group in range(rows.num_row_groups)]
        ends = np.cumsum(sizes)
        for group, own in groupby(places, key=lambda place: int(np.searchsorted(ends, place, "right"))):
            first = int(ends[group]) - sizes[group]
            yield from rows.read_row_group(group).take([place - first for place in own]).to_pylist()


class _Lines:
    """The rows of a CSV file, each with its offset in bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._at = file, file.tell()
        self._rows = csv.reader(self._texts())

    def header(self) -> list[str]:
        """The first row."""
        return [name.removeprefix("\ufeff") for name in next(self._rows, [])]

    def __iter__(self) -> Iterator[tuple[list[str], int]]:
        while True:
            place = self._at
            try:
                if row := next(self._rows):
                    yield row, place
            except StopIteration:
                return
            except csv.Error:
                yield [], place

    def _texts(self) -> Iterator[str]:
        while line := self._file.readline(_MOST_ROW_BYTES):
            self._at += len(line)
            yield line.decode("utf-8", "replace")
