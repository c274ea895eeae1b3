"""What an input text means: a tar, a folder, a glob, a brace pattern, a list file, or a URL of those."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import filterfalse

from fsspec.utils import glob_translate

from dali_aesthetic.shards import earlier_runs
from dali_aesthetic.shards.formats import IMAGE_RANK, extension
from dali_aesthetic.shards.listing import InputError as InputError
from dali_aesthetic.shards.listing import PackedTexts, _lines, common_parent, expand_braces, missing, walk
from dali_aesthetic.stores.access import list_files, read_bytes
from dali_aesthetic.stores.location import fixed_root, is_url, parent
from dali_aesthetic.stores.store import StoreUnusable

_PLAIN_TAR = re.compile(r"[^*?\[{]*\.tar", re.IGNORECASE | re.DOTALL)
_SHOWN = 5
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, slots=True)
class Located:
    """What one input was found to be: tars under a root (their names are relative to it), or a folder of
    images with the paths below it."""

    root: str
    tars: Sequence[str] = ()
    image_folder: str = ""
    images: tuple[str, ...] = ()
    ordered: bool = False


def locate(text: str, exclude: str = "") -> Located:
    """Finds what `text` means; folders below `exclude` (the output) are not looked into.

    Raises InputError where there is nothing, or something that can't be read as shards.
    """
    if text.startswith("@"):
        return _list_file(text[1:], exclude)
    if not text:
        raise InputError("an empty input; give a tar, a pattern, a folder or @list.txt")
    if is_url(text):
        return _remote(text, exclude)
    if os.path.isdir(text):
        return _folder(text, exclude)
    if os.path.isfile(text):
        return Located(root=os.path.dirname(text), tars=(_checked_tar(text),))
    if "{" in text:
        return _braces(text, exclude)
    if glob.has_magic(text):
        return _glob(text, exclude)
    raise InputError(f"{text} does not exist" + _current_folder(text))


def _check_exist(paths: list[str], what: str) -> None:
    """Raises InputError naming the first local `paths` that don't exist."""
    if absent := missing(paths):
        shown = ", ".join(absent[:_SHOWN]) + (", …" if len(absent) > _SHOWN else "")
        raise InputError(
            f"{what}: {len(absent)} of its {len(paths)} files do not exist: {shown}"
            f"{_current_folder(absent[0])}"
        )


def _current_folder(path: str) -> str:
    return "" if os.path.isabs(path) else f" (looked for in {os.getcwd()})"


def _checked_tar(path: str) -> str:
    lower = path.lower()
    if lower.endswith(".tar"):
        return path
    if lower.endswith(_COMPRESSED):
        raise InputError(f"{path} is compressed, so samples can't be copied from it; decompress it first")
    if extension(path) in IMAGE_RANK:
        raise InputError(f"{path} is an image; give the folder that holds it")
    raise InputError(f"{path} is neither a .tar nor a folder; a list of paths is given as @{path}")


def _folder(path: str, exclude: str) -> Located:
    tars, images, others, compressed = [], [], [], []
    for name in walk(path, exclude):
        kind = extension(name)
        if kind == "tar":
            tars.append(name)
        elif kind in IMAGE_RANK:
            images.append(name)
        elif name.lower().endswith(_COMPRESSED):
            compressed.append(name)
        else:
            others.append(name)
    records = [name for name in others if name.endswith(earlier_runs.RECORD)]
    if images:
        tars = list(filterfalse(earlier_runs.written_by(records), tars))  # those were made of the images
    else:
        tars = earlier_runs.without_copies(path, tars, records)
    if tars and images:
        raise InputError(
            f"{path} holds both {len(tars)} tars (like {tars[0]}) and "
            f"{len(images)} images (like {images[0]}); "
            f"give the tars as a pattern ({os.path.join(path, '**', '*.tar')}) or a folder of one kind"
        )
    if tars:
        return Located(root=path, tars=tuple(os.path.join(path, name) for name in sorted(tars)))
    if images:
        return Located(root=path, image_folder=path, images=tuple(images + others))
    hint = f"; it has compressed tars (like {compressed[0]}): decompress them first" if compressed else ""
    raise InputError(
        f"nothing to do in {path}: no .tar and no image file in it or below ({len(others)} other files){hint}"
    )


def _list_file(path: str, exclude: str) -> Located:
    try:
        # As bytes and line by line: a list may have a million lines, and one string of all of them is no use.
        found = _members(_lines(path, read_bytes(path)), exclude, ordered=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list file {path} can't be read: {error}") from error
    if not found.tars:
        raise InputError(f"the list file {path} names no shard (all lines are blank or comments)")
    _check_exist([tar for tar in found.tars if not is_url(tar)], f"the list file {path}")
    return found


def _members(texts: Iterable[str], exclude: str, ordered: bool = False) -> Located:
    """Many: a plain tar is taken as it is, its existence being known or left to the reader."""
    tars, roots, last = PackedTexts(), set[str](), None
    for text in texts:
        if not _is_plain_tar(text):
            found = merge([locate(text, exclude)])
            roots.add(found.root)
            for tar in found.tars:
                tars.append(tar)
            continue
        tars.append(text)
        if (folder := text.rpartition("/")[0]) != last:
            last = folder
            roots.add(parent(text))
    return Located(root=common_parent(roots), tars=tars, ordered=ordered)


def merge(found: list[Located], ordered: bool = False) -> Located:
    """Several inputs of tars as one, named from their common parent. Raises InputError for images."""
    if folders := [item.image_folder for item in found if item.image_folder]:
        raise InputError(
            f"{folders[0]} is a folder of images beside other inputs; a run takes tars or one such folder"
        )
    tars = found[0].tars if len(found) == 1 else tuple(tar for item in found for tar in item.tars)
    return Located(root=common_parent(item.root for item in found), tars=tars, ordered=ordered)


def _is_plain_tar(text: str) -> bool:
    return _PLAIN_TAR.fullmatch(text) is not None


def _braces(text: str, exclude: str) -> Located:
    members = expand_braces(text)
    plain = [member for member in members if not glob.has_magic(member)]
    _check_exist(plain, f"the pattern {text}")
    tars = _members(members, exclude).tars
    return Located(root=fixed_root(text), tars=tars)


def _glob(text: str, exclude: str) -> Located:
    found = sorted(glob.iglob(text, recursive=True))
    if exclude:
        below = os.path.abspath(exclude) + os.sep
        found = [path for path in found if not (os.path.abspath(path) + os.sep).startswith(below)]
    if not found:
        raise InputError(f"the pattern {text} matches nothing{_current_folder(text)}")
    return Located(root=fixed_root(text), tars=_members(found, exclude).tars)


def _remote(text: str, exclude: str) -> Located:
    """A URL of a tar, a pattern of tars or a folder of tars, in one listing of its store."""
    if "{" in text:
        tars = _members(expand_braces(text), exclude).tars
        return Located(root=posixpath.dirname(text[: text.index("{")]), tars=tars)
    if _is_plain_tar(text):
        return Located(root=parent(text), tars=(text,))
    if text.lower().endswith(_COMPRESSED):
        _checked_tar(text)
    text = text.rstrip("/")
    root = fixed_root(text)
    fits = re.compile(glob_translate(text)) if glob.has_magic(text) else None
    below = exclude.rstrip("/") + "/" if exclude else "\0"
    count, records = 0, list[str]()
    tars = PackedTexts()
    try:
        for name in list_files(root):
            count += 1
            url = f"{root}/{name}"
            if name.endswith(earlier_runs.RECORD) and not url.startswith(below):
                records.append(name)
            if extension(name) == "tar" and not url.startswith(below) and (fits is None or fits.match(url)):
                tars.append(url)
    except StoreUnusable as error:
        raise InputError(str(error)) from error
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{text} can't be listed: {error}") from error
    if not tars:
        raise InputError(f"{text} holds no .tar ({count} other files); a folder of images must be local")
    if fits is None and records:
        names = earlier_runs.without_copies(root, [url[len(root) + 1 :] for url in tars], records)
        tars = PackedTexts(f"{root}/{name}" for name in names)
    return Located(root=root, tars=tars)
