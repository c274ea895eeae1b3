"""The shards of a run: found, ordered, and named after the input alone."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dali_aesthetic.shards.folder import ImageFiles, group_images
from dali_aesthetic.shards.inputs import InputError, Located, locate, merge
from dali_aesthetic.shards.listing import PackedTexts, TarShards
from dali_aesthetic.shards.opened import is_url
from dali_aesthetic.shards.parquet import name_parquet, parquet_shards
from dali_aesthetic.types import Shard

__all__ = ["InputError", "plan_shards"]


def plan_shards(
    inputs: str | Path | Sequence[str | Path],
    *,
    samples_per_shard: int = 10_000,
    output: str | Path = "",
    image_column: str = "",
) -> Sequence[Shard]:
    """Lists the shards of `inputs`: a tar, a glob, a brace pattern, a folder of tars, `@list.txt`, several of
    these (as a shell makes of an unquoted pattern), or one folder of images, cut into `samples_per_shard`;
    or Parquet files with images, in the column `image_column` or one found by type and name.

    Tars are sorted by name, those of a list file stay in its order. Folders below `output` are not input.
    Raises InputError where there is nothing to do or two shards would share a name. A million tars take some
    90 MB; each `Shard` of them is made when it is asked for.
    """
    texts = [str(inputs)] if isinstance(inputs, str | Path) else [str(text) for text in inputs]
    if not texts:
        raise InputError("no input; give a tar, a pattern, a folder or @list.txt")
    _check_output(texts, str(output))
    if name_parquet(texts):
        return parquet_shards(texts, image_column, str(output))
    if image_column:
        raise InputError(f"--image-column {image_column} is for Parquet, and {', '.join(texts)} is none")
    found = [locate(text, str(output)) for text in texts]
    if len(found) == 1 and found[0].image_folder:
        return _image_shards(found[0], samples_per_shard)
    return _tar_shards(found[0] if len(found) == 1 else merge(found, any(item.ordered for item in found)))


def _check_output(texts: Sequence[str], output: str) -> None:
    """Raises InputError for a folder that is the output: a second run would take the first one's tars."""
    for text in texts:
        if output and os.path.isdir(text) and os.path.realpath(text) == os.path.realpath(output):
            raise InputError(f"--output {output} is the input itself; give a folder of its own or below it")


def _tar_shards(found: Located) -> TarShards:
    name = partial(_name, root=found.root)
    sources = found.tars
    if not found.ordered and not _are_sorted(map(name, sources)):
        sources = PackedTexts(sorted(sources, key=lambda source: (name(source), source)))
    # Strings would take ten times the memory of their hashes; equal ones are looked at again.
    hashes = np.fromiter((hash(name(source)) for source in sources), np.int64, len(sources))
    if len(np.unique(hashes)) < len(hashes):
        _check_names(sources, name)
    return TarShards(sources, name)


def _are_sorted(names: Iterable[str]) -> bool:
    before = ""
    for name in names:
        if name < before:
            return False
        before = name
    return True


def _check_names(sources: Iterable[str], name_of: Callable[[str], str]) -> None:
    owners: dict[str, str] = {}
    for source in sources:
        name = name_of(source)
        if name in owners:
            other = owners[name]
            problem = "is given twice" if other == source else f"and {other} would both be named {name!r}"
            raise InputError(f"{source} {problem}; remove or rename one of them")
        owners[name] = source


def _name(source: str, root: str) -> str:
    """The tar's path below the root without `.tar`. Raises InputError for one that isn't below it."""
    prefix = root if root.endswith("/") or not root else root + "/"
    if source.startswith(prefix):
        relative = source[len(prefix) :]
    elif is_url(source):
        relative = source.partition("://")[2]
    else:
        relative = os.path.relpath(source, root or ".")
    if "/." in relative or "//" in relative or relative[:1] in ("/", "."):
        relative = posixpath.normpath(relative.removeprefix("/"))
        if ".." in relative.split("/"):
            raise InputError(f"{source} does not lie below {root or 'the current folder'}; give its own path")
    name = relative[: -len(".tar")]
    if name.isprintable() and "\\" not in name:
        return name
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
