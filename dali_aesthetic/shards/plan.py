"""The shards of a run: found, ordered, and named after the input alone."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import eq
from pathlib import Path
from typing import Literal, overload

import numpy as np
import pyarrow as pa

from dali_aesthetic import layout
from dali_aesthetic.shards import metadata
from dali_aesthetic.shards.folder import ImageFiles, group_images
from dali_aesthetic.shards.formats import IMAGE_RANK, extension
from dali_aesthetic.shards.listing import InputError
from dali_aesthetic.shards.oddities import Oddities
from dali_aesthetic.shards.resolve import Found, resolve, texts_of
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.types import Shard

__all__ = ["FileShards", "InputError", "plan_shards"]
FileKind = Literal["tar", "parquet"]
_AT_A_TIME = 1 << 14


def plan_shards(
    inputs: str | Path | Sequence[str | Path],
    *,
    samples_per_shard: int = 10_000,
    output: str | Path = "",
    image_column: str = "",
    follow_links: bool = False,
) -> Sequence[Shard]:
    """Lists the shards of `inputs`: tars, Parquet files or images, as files, globs, brace patterns, folders,
    URLs of these or `@list.txt`; several inputs must be of one kind.

    Each tar and each Parquet file is a shard; they are sorted by name, those of a list file stay in its
    order. Images are cut into shards of `samples_per_shard`. Of Parquet, `image_column` holds the images;
    where it is empty each file's is found by type and name. Folders below `output` are not input, nor are
    links of a folder to outside of it unless `follow_links`; what is left out is counted in the `warnings` of
    the first shard.

    Raises InputError where there is nothing to do, the kinds differ, or a file is given twice. A
    million tars take some 200 MB, at most 330 MB while they are listed: a `Shard` is made when asked for.
    """
    texts = texts_of(inputs)
    _check_output(texts, str(output))
    found = resolve(texts, str(output), follow_links=follow_links)
    if image_column and found.kind != "parquet":
        raise InputError(f"--image-column {image_column} is for Parquet, and {', '.join(texts)} is none")
    if found.kind == "embeddings":
        raise InputError(
            f"{found.files[0]} holds embeddings, not images: `score` and `score-embeddings` score them. "
            "Where Parquet beside them holds images, give it as a pattern (FOLDER/**/*.parquet)"
        )
    if found.kind == "folder":
        return _image_shards(found, samples_per_shard)
    return _file_shards(found, found.kind or "tar", image_column)


class FileShards(Sequence[Shard]):
    """Shards of a file each, in order; a `Shard` is made when it is asked for. `name` gives its name.

    Equal to any sequence of equal shards.
    """

    def __init__(
        self,
        sources: Sequence[str],
        name: Callable[[str], str],
        kind: FileKind = "tar",
        column: str = "",
        warnings: tuple[str, ...] = (),
    ) -> None:
        # Python's strings would take twice the memory. Bytes, because a local path need not be UTF-8.
        chunks = [
            pa.array(list(map(os.fsencode, sources[start : start + _AT_A_TIME])), pa.large_binary())
            for start in range(0, len(sources), _AT_A_TIME)
        ]
        self._sources = pa.chunked_array(chunks, pa.large_binary()).combine_chunks()
        self._name, self._kind, self._column, self._warnings = name, kind, column, warnings

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, place: int) -> Shard: ...
    @overload
    def __getitem__(self, place: slice) -> list[Shard]: ...
    def __getitem__(self, place: int | slice) -> Shard | list[Shard]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        index = range(len(self))[place]
        return self._shard(index, self._sources[index].as_py())

    def __iter__(self) -> Iterator[Shard]:
        for start in range(0, len(self), _AT_A_TIME):
            for index, source in enumerate(self._sources.slice(start, _AT_A_TIME).to_pylist(), start):
                yield self._shard(index, source)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self[:3]}, {len(self)} in all)"

    def _shard(self, index: int, path: bytes) -> Shard:
        source = os.fsdecode(path)
        return Shard(
            index=index,
            name=self._name(source),
            kind=self._kind,
            source=source,
            column=self._column,
            warnings=self._warnings if index == 0 else (),
        )


def _check_output(texts: Sequence[str], output: str) -> None:
    """Raises InputError for a folder that is the output: a second run would take the first one's tars."""
    for text in texts:
        if output and os.path.isdir(text) and os.path.realpath(text) == os.path.realpath(output):
            raise InputError(f"--output {output} is the input itself; give a folder of its own or below it")


def _file_shards(found: Found, kind: FileKind, column: str) -> FileShards:
    name = name_of(found)
    sources = found.files if found.ordered else sorted(found.files, key=name)
    return FileShards(sources, name, kind, column, _oddities(found).warnings())


def _oddities(found: Found) -> Oddities:
    oddities = Oddities()
    for kind, path in sorted(found.left_out):  # a directory has no order of its own
        oddities.add(kind, path)
    return oddities


def name_of(found: Found) -> Callable[[str], str]:
    """Gives each of the files the name of its shard. Raises InputError for a file that is given twice."""
    name = partial(shard_name, root=found.root)
    return partial(shard_name, root=found.root, apart=_of_one_name(found.files, name))


def _of_one_name(sources: Sequence[str], name: Callable[[str], str]) -> frozenset[str]:
    """The files that share their name with another one; of these the one with a lower-case extension is left
    out. Raises InputError for a file that is given twice."""
    # Names would take ten times the memory of their hashes; equal hashes are checked by name.
    hashes = np.fromiter((hash(name(source)) for source in sources), np.int64, len(sources))
    if len(np.unique(hashes)) == len(hashes):
        return frozenset()
    owners: dict[str, str] = {}
    apart = set()
    for source in sources:
        if (other := owners.get(name(source))) is None:
            owners[name(source)] = source
            continue
        odd = {one for one in (source, other) if not one.rpartition(".")[2].islower()}
        if not odd or os.path.abspath(other) == os.path.abspath(source):
            raise InputError(f"{other} is given twice; remove one of the two")
        apart |= odd
    return frozenset(apart)


def shard_name(source: str, root: str, apart: frozenset[str] = frozenset()) -> str:
    """The name made of the file's path below the root, without its extension (`layout.shard_name`).

    Those of `apart` have a digest of their whole path in it. Raises InputError for a local file that isn't
    below the root.
    """
    below = _below(source, root)
    return layout.shard_name(below.rpartition(".")[0], below if source in apart else "")


def _below(source: str, root: str) -> str:
    """The file's path relative to the root. Raises InputError for a local one that isn't below it."""
    prefix = root if root.endswith("/") or not root else root + "/"
    relative = source[len(prefix) :] if source.startswith(prefix) else ""
    if is_url(source):
        return relative or source.partition("://")[2]  # an object's key may have any segments
    relative = relative or os.path.relpath(source, root or ".")
    if "/." in relative or "//" in relative or relative[:1] in ("/", "."):
        relative = posixpath.normpath(relative.removeprefix("/"))
        if ".." in relative.split("/"):
            raise InputError(f"{source} does not lie below {root or 'the current folder'}; give its own path")
    return relative


def _image_shards(found: Found, samples_per_shard: int) -> list[Shard]:
    if samples_per_shard < 1:
        raise InputError(f"samples_per_shard is {samples_per_shard}; give at least 1")
    paths = [_below(file, found.root) for file in found.files]
    images = [path for path in paths if extension(path) in IMAGE_RANK]
    _of_one_name(images, str)
    oddities = _oddities(found)
    usable = metadata.survey(found.root, filter(metadata.is_metadata, paths), frozenset(images), oddities)
    return [
        Shard(
            index=index,
            name=f"{index:05d}",
            kind="folder",
            source=found.root,
            files=files,
            fingerprint=_fingerprint(found.root, files),
            warnings=oddities.warnings() if index == 0 else (),
        )
        for index, files in enumerate(_cut(group_images(paths), samples_per_shard, frozenset(usable)))
    ]


def _cut(groups: list[ImageFiles], size: int, rows: frozenset[str]) -> Iterator[tuple[str, ...]]:
    """Files of at most `size` samples each, with the files of `rows`, their metadata. Images that share a
    sidecar or a stem stay together, because their keys are made from one another."""
    files: dict[str, None] = {}
    count = 0
    for index, group in enumerate(groups):
        together = index > 0 and group.stem == groups[index - 1].stem
        if count >= size and not together:
            yield tuple(files)
            files, count = {}, 0
        files.update(dict.fromkeys((group.image, *group.sidecars, *metadata.covering(group.image, rows))))
        count += 1
    if files:
        yield tuple(files)


def _fingerprint(root: str, files: tuple[str, ...]) -> str:
    """sha256 over names and sizes: another list of files, or a file of another size, is another shard."""
    digest = hashlib.sha256()
    for name in files:
        try:
            size = os.stat(os.path.join(root, name)).st_size
        except OSError:
            size = -1
        digest.update(f"{len(os.fsencode(name))}:".encode() + os.fsencode(name) + f":{size}\n".encode())
    return digest.hexdigest()
