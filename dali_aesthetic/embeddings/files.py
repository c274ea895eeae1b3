"""Files of stored embeddings and their metadata, in clip-retrieval's and LAION's layouts or plain `.npy`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dali_aesthetic.shards.listing import InputError
from dali_aesthetic.shards.plan import name_of
from dali_aesthetic.shards.resolve import kind_of_first, resolve, texts_of

_IMAGES = "img_emb"
_MARK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFile:
    """One `.npy`, the name of its scores, and the Parquet with a row for each of its rows ("": none)."""

    name: str
    path: str
    metadata: str = ""


def find_embeddings(inputs: str | Path | Sequence[str | Path], exclude: str = "") -> list[EmbeddingFile]:
    """The embedding files of `inputs`: a `.npy`, a glob, a brace pattern, `@list.txt`, or a folder.

    Of a folder in which some files lie in an `img_emb` folder (clip-retrieval's and LAION's layouts) those
    are taken, else every `.npy` below it; folders below `exclude` are not looked into. Raises InputError
    where there is none, or a file lacks the metadata that the others of its folder have.
    """
    found = resolve(texts_of(inputs), exclude, "embeddings", follow_links=True)
    name, paths = name_of(found), sorted(found.files)
    return [EmbeddingFile(name=name(path), path=path, metadata=_metadata(path)) for path in paths]


def holds_embeddings(inputs: Sequence[str]) -> bool:
    """Whether `inputs` are stored embeddings: `.npy` files, or folders with some and no tars or images."""
    return kind_of_first(texts_of(inputs)) == "embeddings"


def fingerprint(file: EmbeddingFile) -> str:
    """A digest of both files' sizes, first and last MiB: it detects another file of the same name without
    reading gigabytes."""
    digest = hashlib.sha256()
    for path in filter(None, (file.path, file.metadata)):
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            digest.update(size.to_bytes(8, "little"))
            for place in (0, max(0, size - _MARK_BYTES)):
                stream.seek(place)
                digest.update(stream.read(_MARK_BYTES))
    return digest.hexdigest()


def _metadata(path: str) -> str:
    """The path of `metadata_7.parquet` for `img_emb_7.npy`: beside it, or in a folder `metadata` or
    `…-metadata` beside its folder; empty for other names and where no file has metadata."""
    stem = Path(path).stem
    if not stem.startswith(f"{_IMAGES}_"):
        return ""
    name = f"metadata_{stem.removeprefix(f'{_IMAGES}_')}.parquet"
    parent = Path(path).absolute().parent  # not resolved: the Hugging Face cache links to blobs
    images = next((folder for folder in (parent, *parent.parents) if folder.name == _IMAGES), parent)
    beside = [images.parent / "metadata", *sorted(images.parent.glob("*-metadata"))]
    folders = [parent, *(folder / parent.relative_to(images) for folder in beside)]
    found = [folder / name for folder in dict.fromkeys(folders) if (folder / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{path} has metadata twice, {found[0]} and {found[1]}: leave one of them there")
    if found:
        return str(found[0])
    if others := [other for folder in folders for other in folder.glob("metadata_*.parquet")]:
        raise InputError(f"{path} has no {name}, though {others[0]} is there; restore it or move them all")
    return ""
