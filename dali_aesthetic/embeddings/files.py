"""Files of stored embeddings: clip-retrieval's and LAION's layouts, and plain `.npy`, found by location."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dali_aesthetic.shards.formats import IMAGE_RANK, extension
from dali_aesthetic.shards.inputs import InputError
from dali_aesthetic.shards.listing import common_parent, expand_braces, walk
from dali_aesthetic.shards.opened import is_url

_IMAGES = "img_emb"
_MARK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFile:
    """One `.npy`, the name its scores go by, and the Parquet with a row for each of its rows ("": none)."""

    name: str
    path: str
    metadata: str = ""


def find_embeddings(inputs: str | Path | Sequence[str | Path], exclude: str = "") -> list[EmbeddingFile]:
    """The embedding files of `inputs`: a `.npy`, a glob, a brace pattern, `@list.txt`, or a folder.

    Of a folder in which some files lie in an `img_emb` folder (clip-retrieval's and LAION's layouts) those
    are taken, else every `.npy` below it; folders below `exclude` are not looked into. Raises InputError
    where there is none, or a file lacks the metadata that the others of its folder have.
    """
    texts = [str(inputs)] if isinstance(inputs, str | Path) else [str(text) for text in inputs]
    paths = [path for text in texts for path in _located(text, exclude)]
    places = [os.path.abspath(path) for path in paths]
    if len(set(places)) < len(places):
        twice = next(path for path in places if places.count(path) > 1)
        raise InputError(f"{twice} is given twice; give each file once")
    root = common_parent(os.path.dirname(path) for path in paths)
    return [
        EmbeddingFile(name=_name(path, root), path=path, metadata=_metadata(path)) for path in sorted(paths)
    ]


def holds_embeddings(text: str) -> bool:
    """Whether the input `text` names stored embeddings: it ends in `.npy`, or is a folder that holds some.

    Beside tars or images they are not what is to be scored.
    """
    if text.endswith(".npy"):
        return True
    if not os.path.isdir(text):
        return False
    kinds = {extension(name) for name in walk(text)}
    return "npy" in kinds and "tar" not in kinds and kinds.isdisjoint(IMAGE_RANK)


def fingerprint(file: EmbeddingFile) -> str:
    """A digest of both files' sizes, first and last bytes: it tells another file under the same name, and
    doesn't read gigabytes to find out."""
    digest = hashlib.sha256()
    for path in filter(None, (file.path, file.metadata)):
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            digest.update(size.to_bytes(8, "little"))
            for place in (0, max(0, size - _MARK_BYTES)):
                stream.seek(place)
                digest.update(stream.read(_MARK_BYTES))
    return digest.hexdigest()


def _located(text: str, exclude: str) -> list[str]:
    if is_url(text):
        raise InputError(f"{text}: embeddings are mapped into memory, so they must be local; download them")
    if text.startswith("@"):
        lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        return [path for line in lines if line.strip() for path in _located(line.strip(), exclude)]
    if os.path.isdir(text):
        found = _npy_below(text, exclude)
    elif os.path.isfile(text):
        found = [text]
    else:
        found = [path for one in expand_braces(text) for path in sorted(glob.glob(one, recursive=True))]
    if not found:
        raise InputError(f"{text}: no .npy of embeddings there (looked from {os.getcwd()})")
    if wrong := [path for path in found if not path.endswith(".npy")]:
        raise InputError(f"{wrong[0]} is no .npy; stored embeddings are .npy files or a folder of them")
    return found


def _npy_below(folder: str, exclude: str) -> list[str]:
    names = sorted(name for name in walk(folder, exclude) if name.endswith(".npy"))
    if os.path.basename(os.path.normpath(folder)) != _IMAGES:
        names = [name for name in names if _IMAGES in name.split("/")[:-1]] or names
    return [os.path.join(folder, name) for name in names]


def _name(path: str, root: str) -> str:
    return os.path.relpath(path, root or ".").replace(os.sep, "/").removesuffix(".npy")


def _metadata(path: str) -> str:
    """`metadata_7.parquet` of `img_emb_7.npy`: beside it, or in a folder `metadata` or `…-metadata` beside
    its folder."""
    stem = Path(path).stem
    if not stem.startswith(f"{_IMAGES}_"):
        return ""
    name = f"metadata_{stem.removeprefix(f'{_IMAGES}_')}.parquet"
    parent = Path(path).absolute().parent  # not where a link of the Hugging Face cache leads to
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
