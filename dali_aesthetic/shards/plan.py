"""The shards of a run: found, ordered, and named after the input alone."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from dali_aesthetic.shards.buffer import is_url
from dali_aesthetic.shards.images import ImageFiles, group_images
from dali_aesthetic.shards.inputs import InputError, Located, locate, merge
from dali_aesthetic.shards.parquet import name_parquet, parquet_shards
from dali_aesthetic.types import Shard

__all__ = ["InputError", "plan_shards"]


def plan_shards(
    inputs: str | Path | Sequence[str | Path],
    *,
    samples_per_shard: int = 10_000,
    output: str | Path = "",
    image_column: str = "",
) -> list[Shard]:
    """Lists the shards of `inputs`: a tar, a glob, a brace pattern, a folder of tars, `@list.txt`, several of
    these (as a shell makes of an unquoted pattern), or one folder of images, cut into `samples_per_shard`;
    or Parquet files with images, in the column `image_column` or one found by type and name.

    Tars are sorted by name, those of a list file stay in its order. Folders below `output` are not input.
    Raises InputError where there is nothing to do or two shards would share a name.
    """
    texts = [str(inputs)] if isinstance(inputs, str | Path) else [str(text) for text in inputs]
    if not texts:
        raise InputError("no input; give a tar, a pattern, a folder or @list.txt")
    if name_parquet(texts):
        return parquet_shards(texts, image_column, str(output))
    found = [locate(text, str(output)) for text in texts]
    if len(found) == 1 and found[0].image_folder:
        return _image_shards(found[0], samples_per_shard)
    return _tar_shards(found[0] if len(found) == 1 else merge(found, any(item.ordered for item in found)))


def _tar_shards(found: Located) -> list[Shard]:
    named = [(_name(source, found.root), source) for source in found.tars]
    owners: dict[str, str] = {}
    for name, source in named if found.ordered else sorted(named):
        if (other := owners.setdefault(name, source)) is not source:
            problem = "is given twice" if other == source else f"and {other} would both be named {name!r}"
            raise InputError(f"{source} {problem}; remove or rename one of them")
    return [
        Shard(index=index, name=name, kind="tar", source=source)
        for index, (name, source) in enumerate(owners.items())
    ]


def _name(source: str, root: str) -> str:
    """The tar's path below the root without `.tar`. Raises InputError for one that isn't below it."""
    prefix = root.rstrip("/") + "/" if root else ""
    if source.startswith(prefix):
        relative = source[len(prefix) :]
    elif is_url(source):
        relative = source.partition("://")[2]
    else:
        relative = os.path.relpath(source, root or ".")
    parts = posixpath.normpath(relative.removeprefix("/")).split("/")
    if ".." in parts:
        raise InputError(f"{source} does not lie below {root or 'the current folder'}; give its own path")
    name = "/".join(parts)[: -len(".tar")]
    return "".join(letter if letter.isprintable() and letter != "\\" else "_" for letter in name)


def _image_shards(found: Located, samples_per_shard: int) -> list[Shard]:
    if samples_per_shard < 1:
        raise InputError(f"samples_per_shard is {samples_per_shard}; give at least 1")
    return [
        Shard(
            index=index,
            name=f"{index:05d}",
            kind="folder",
            source=found.image_folder,
            files=files,
            fingerprint=_fingerprint(found.image_folder, files),
        )
        for index, files in enumerate(_cut(group_images(found.images), samples_per_shard))
    ]


def _cut(groups: list[ImageFiles], size: int) -> Iterator[tuple[str, ...]]:
    """Files of at most `size` samples each; images that share a sidecar or a stem stay together, because
    their keys are made from one another."""
    files: dict[str, None] = {}
    count = 0
    for index, group in enumerate(groups):
        together = index > 0 and group.stem == groups[index - 1].stem
        if count >= size and not together:
            yield tuple(files)
            files, count = {}, 0
        files.update(dict.fromkeys((group.image, *group.sidecars)))
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
