"""What an input text means: a tar, a folder, a glob, a brace pattern, a list file, or a URL of those."""

from __future__ import annotations

import glob
import math
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

import fsspec
from braceexpand import braceexpand

from dali_aesthetic.shards.buffer import is_url
from dali_aesthetic.shards.formats import IMAGE_RANK, extension

MAX_BRACE_MEMBERS = 10_000_000
_ENOUGH = MAX_BRACE_MEMBERS + 1
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")
_SHOWN = 5
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class InputError(ValueError):
    """The input names nothing to work on, or not clearly; the text says what and how to mend it."""


@dataclass(frozen=True, slots=True)
class Located:
    """What one input was found to be: tars under a root (their names are relative to it), or a folder of
    images with the paths below it."""

    root: str
    tars: tuple[str, ...] = ()
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
        return _remote(text)
    if os.path.isdir(text):
        return _folder(text, exclude)
    if os.path.isfile(text):
        return Located(root=os.path.dirname(text), tars=(_checked_tar(text),))
    if "{" in text:
        return _braces(text, exclude)
    if glob.has_magic(text):
        return _glob(text, exclude)
    raise InputError(f"{text} does not exist" + _current_folder(text))


def _missing(paths: Iterable[str]) -> list[str]:
    """The local `paths` that don't exist; lists each folder once instead of asking for each file."""
    listed: dict[str, frozenset[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = _names(folder)
        if name not in listed[folder]:
            missing.append(path)
    return missing


def _check_exist(paths: list[str], what: str) -> None:
    """Raises InputError naming the first local `paths` that don't exist."""
    if missing := _missing(paths):
        shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise InputError(
            f"{what}: {len(missing)} of its {len(paths)} files do not exist: {shown}"
            f"{_current_folder(missing[0])}"
        )


def _names(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder or "."))
    except OSError:
        return frozenset()


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


def walk(root: str, exclude: str = "") -> Iterator[str]:
    """Files below `root` as relative paths with `/`, hidden ones left out; each real folder once."""
    excluded = os.path.realpath(exclude) if exclude else ""
    visited = {os.path.realpath(root)}
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                relative = f"{folder}{entry.name}"
                if entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real not in visited and real != excluded:
                        visited.add(real)
                        folders.append(f"{relative}/")
                elif entry.is_file() or entry.is_symlink():
                    # A link to nothing is listed too: it becomes a row or an error, never a silent loss.
                    yield relative


def _list_file(path: str, exclude: str) -> Located:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list file {path} can't be read: {error}") from error
    wanted = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not wanted:
        raise InputError(f"the list file {path} names no shard ({len(lines)} lines, all blank or comments)")
    if nested := [line for line in wanted if line.startswith("@")]:
        raise InputError(f"the list file {path} holds another list ({nested[0]}); write its lines into it")
    _check_exist([x for x in wanted if _is_plain_tar(x) and not is_url(x)], f"the list file {path}")
    return merge([_member(x, exclude) for x in wanted], ordered=True)


def _member(text: str, exclude: str) -> Located:
    """One of many: a plain tar is taken as it is, its existence being known or left to the reader."""
    return Located(parent(text), (text,)) if _is_plain_tar(text) else locate(text, exclude)


def merge(found: list[Located], ordered: bool = False) -> Located:
    """Several inputs of tars as one, named from their common parent. Raises InputError for images."""
    if folders := [item.image_folder for item in found if item.image_folder]:
        raise InputError(
            f"{folders[0]} is a folder of images beside other inputs; a run takes tars or one such folder"
        )
    tars = tuple(tar for item in found for tar in item.tars)
    return Located(root=common_parent(item.root for item in found), tars=tars, ordered=ordered)


def _is_plain_tar(text: str) -> bool:
    return text.lower().endswith(".tar") and not glob.has_magic(text) and "{" not in text


def _braces(text: str, exclude: str) -> Located:
    members = expand_braces(text)
    plain = [member for member in members if not glob.has_magic(member)]
    _check_exist(plain, f"the pattern {text}")
    tars = merge([_member(member, exclude) for member in members]).tars
    return Located(root=_fixed_root(os.path.dirname(text[: text.index("{")])), tars=tars)


def expand_braces(text: str) -> list[str]:
    """The members of a brace pattern, in its order. Raises InputError where it is malformed or too large."""
    # braceexpand makes whole ranges before its first member.
    sizes = (abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(text))
    try:
        members = [] if math.prod(sizes) > MAX_BRACE_MEMBERS else list(islice(braceexpand(text), _ENOUGH))
    except ValueError as error:
        raise InputError(f"the pattern {text} is malformed ({error}); write {{00000..00123}}.tar") from error
    if not 0 < len(members) < _ENOUGH:
        raise InputError(f"the pattern {text} has over {MAX_BRACE_MEMBERS} members; give a glob instead")
    return members


def _glob(text: str, exclude: str) -> Located:
    found = sorted(glob.iglob(text, recursive=True))
    if exclude:
        below = os.path.abspath(exclude) + os.sep
        found = [path for path in found if not (os.path.abspath(path) + os.sep).startswith(below)]
    if not found:
        raise InputError(f"the pattern {text} matches nothing{_current_folder(text)}")
    tars = merge([_member(path, exclude) for path in found]).tars
    return Located(root=_fixed_root(text), tars=tars)


def _fixed_root(text: str) -> str:
    """The folders of a pattern before its first special part."""
    while glob.has_magic(text):
        text = os.path.dirname(text)
    return text


def _remote(text: str) -> Located:
    """A URL of a tar, a pattern of tars or a folder of tars, listed by its file system."""
    if "{" in text:
        members = expand_braces(text)
        found = [_member(member, "") for member in members]
        return Located(root=posixpath.dirname(text[: text.index("{")]), tars=merge(found).tars)
    if _is_plain_tar(text):
        return Located(root=parent(text), tars=(text,))
    if text.lower().endswith(_COMPRESSED):
        _checked_tar(text)
    root = _fixed_root(text.rstrip("/"))
    try:
        system, path = fsspec.core.url_to_fs(text)
        base = fsspec.core.url_to_fs(root)[1].rstrip("/")
        names = system.glob(path) if glob.has_magic(path) else system.find(path)
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{text} can't be listed: {error}") from error
    tars = [name for name in sorted(names) if name.endswith(".tar") and name.startswith(base)]
    if not tars:
        raise InputError(f"{text} holds no .tar ({len(names)} other files); a folder of images must be local")
    return Located(root=root, tars=tuple(f"{root}/{name[len(base) :].lstrip('/')}" for name in tars))


def parent(path: str) -> str:
    """The folder of a path or URL."""
    return posixpath.dirname(path) if is_url(path) else os.path.dirname(path)


def common_parent(folders: Iterable[str]) -> str:
    """The deepest folder that holds all `folders`; empty where they share none (two buckets)."""
    absolute = {folder if is_url(folder) else os.path.abspath(folder) for folder in folders}
    levels = zip(*(folder.split("/") for folder in absolute), strict=False)
    return "/".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))
