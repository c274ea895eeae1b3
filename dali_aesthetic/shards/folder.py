"""Samples from image files and their sidecars, as tar entries made from the files' own bytes."""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from dali_aesthetic.shards import metadata
from dali_aesthetic.shards.formats import IMAGE_RANK, extension
from dali_aesthetic.shards.oddities import Oddities
from dali_aesthetic.shards.opened import DEFAULT_LIMITS, ReadLimits, TooManyBytes, read_file
from dali_aesthetic.shards.scan import BLOCK, checksum
from dali_aesthetic.types import Buffer, Sample, Shard, ShardEnd, Status

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_MAX_OCTAL_SIZE = 8**11 - 1


def read_folder(shard: Shard, limits: ReadLimits = DEFAULT_LIMITS) -> Iterator[Sample | ShardEnd]:
    """Yields the shard's images with their sidecars, sorted by key, then its one ShardEnd.

    An image's row of a `metadata.jsonl`, `.csv` or `.parquet` becomes its json, and beside a json of its own
    `KEY.metadata.json`.
    """
    oddities = Oddities()
    rows = metadata.read_rows(shard.source, shard.files, oddities)
    for files in group_images(shard.files):
        yield _sample(shard, files, rows, oddities, limits)
    yield ShardEnd(shard=shard, warnings=oddities.warnings())


def _sample(
    shard: Shard, files: ImageFiles, rows: Mapping[str, bytes], oddities: Oddities, limits: ReadLimits
) -> Sample:
    path = os.path.join(shard.source, files.image)
    entries: list[Buffer] = []
    files_read: list[tuple[str, Buffer]] = []
    image: Buffer | None = None
    sidecar: Buffer | None = None
    status, message, left = Status.OK, "", limits.max_member_bytes
    try:
        for name in (files.image, *files.sidecars):
            data = read_file(os.path.join(shard.source, name), limits.max_member_bytes)
            if (left := left - len(data)) < 0:
                limit = f"{limits.max_member_bytes:,} bytes, the limit of a sample"
                raise TooManyBytes(f"{path} and its sidecars together have more than {limit}")
            _append(entries, files.member(name), data)
            files_read.append((name, data))
            if name == files.image:
                image = data
            if extension(name) == "json" and sidecar is None:
                sidecar = data
        if (row := rows.get(files.image)) is not None:
            _append(entries, f"{files.key}.{'json' if sidecar is None else 'metadata.json'}", row)
            sidecar = row if sidecar is None else sidecar
    except TooManyBytes as error:
        status, message = Status.TOO_LARGE, str(error)
    except OSError as error:
        # A sample without one of its files would be kept incomplete.
        status, message = Status.MISSING_IMAGE, f"{error.filename} can't be read: {error.strerror}"
        oddities.add("files that can't be read", str(error.filename))
    if status is Status.OK and not image:
        status, message = Status.EMPTY, f"{path} has no bytes"
    whole = status in (Status.OK, Status.EMPTY)
    return Sample(
        shard=shard,
        key=files.key,
        image=image if status is Status.OK else None,
        entries=tuple(entries) if whole else (),
        source=path,
        offset=0,
        sidecar=sidecar,
        status=status,
        message=message,
        files=tuple(files_read) if whole else (),
    )


def _append(entries: list[Buffer], name: str, data: Buffer) -> None:
    entries += (tar_header(name, len(data)), data)
    if fill := padding(len(data)):
        entries.append(fill)


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """The files of one sample, as paths below the root, and its webdataset key.

    `stem` is the key before it was made unique; images that share it differ in their extension.
    """

    key: str
    stem: str
    image: str
    sidecars: tuple[str, ...]

    def member(self, path: str) -> str:
        """The tar member name of the file `path`: the key, then the file's own extension."""
        suffix = path[len(_stem(self.image)) + 1 :]
        return f"{self.key}.{_printable(suffix)}"


def group_images(files: Iterable[str]) -> list[ImageFiles]:
    """The samples among `files` (relative paths), sorted by key; files without an image and metadata are left
    out.

    A sidecar has its image's name with another extension (`a.txt`) or with one added (`a.jpg.json`); one that
    fits several images goes with each. webdataset cuts a key at the first dot of a name, so dots become `_`;
    names that would then share a key get their extension (`a_jpg`, `a_png`), and a number if still equal.
    """
    images: dict[str, list[str]] = defaultdict(list)
    sidecars: dict[str, list[str]] = defaultdict(list)
    for path in sorted(set(files)):
        if extension(path) in IMAGE_RANK:
            images[clean_key(_stem(path))].append(path)
        elif extension(path) and not metadata.is_metadata(path):
            sidecars[_stem(path)].append(path)
    taken = {key for key, paths in images.items() if len(paths) == 1}
    return [
        ImageFiles(key, group, path, (*sidecars.get(_stem(path), ()), *sidecars.get(path, ())))
        for group, paths in sorted(images.items())
        for key, path in _unique(group, paths, taken)
    ]


def clean_key(stem: str) -> str:
    """`stem` as a key: no dot in its last part, nothing unprintable, no `..`."""
    folder, slash, name = stem.rpartition("/")
    text = _printable(folder + slash + name.replace(".", "_"))
    parts = [part if part.strip(".") else "_" * max(1, len(part)) for part in text.split("/")]
    return "/".join(parts)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "_" for c in text)


def _unique(group: str, paths: list[str], taken: set[str]) -> Iterator[tuple[str, str]]:
    if len(paths) == 1:
        yield group, paths[0]
        return
    for path in paths:
        wanted = key = f"{group}_{extension(path)}"
        number = 2
        while key in taken:
            key = f"{wanted}_{number}"
            number += 1
        taken.add(key)
        yield key, path


def _stem(path: str) -> str:
    return path.rpartition(".")[0] if "." in path.rpartition("/")[2] else path


def tar_header(name: str, size: int) -> bytes:
    """The header blocks of a regular file: mode 0644, owner 0, no times, no user names.

    They depend on name and size alone, so the same file gives the same bytes. A name that is not ASCII or
    longer than 100 bytes, and a size of 8 GiB or more, goes into a PAX header before it.
    """
    records = {}
    if not name.isascii() or len(name) > 100:
        records["path"] = name
    if size > _MAX_OCTAL_SIZE:
        records["size"] = str(size)
    short = name.encode("ascii", "replace")[:100]
    header = _block(short, min(size, _MAX_OCTAL_SIZE), b"0")
    if not records:
        return header
    content = b"".join(_record(key, value) for key, value in records.items())
    return _block(b"././@PaxHeader", len(content), b"x") + content + padding(len(content)) + header


def padding(size: int) -> bytes:
    """The zero bytes between the end of `size` bytes of data and the next block."""
    return bytes(-size % BLOCK)


def _block(name: bytes, size: int, kind: bytes) -> bytes:
    fields = [name, b"0000644\0", b"0000000\0", b"0000000\0", b"%011o\0" % size, b"00000000000\0"]
    rest = [kind, b"", b"ustar\0", b"00", b"", b"", b"", b"", b""]
    unsigned = _HEADER.pack(*fields, b"        ", *rest)
    return _HEADER.pack(*fields, b"%06o\0 " % checksum(unsigned), *rest)


def _record(key: str, value: str) -> bytes:
    """`LENGTH KEY=VALUE\\n`, where the length counts its own digits."""
    body = f" {key}={value}\n".encode()
    length = len(body) + len(str(len(body)))
    length = len(body) + len(str(length))
    return str(length).encode() + body
