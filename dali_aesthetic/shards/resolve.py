"""The files that an input text names, and the kind of what was found.

A text is a file, a folder, a glob, a brace pattern, a URL of these, or `@list.txt` with one of them a line.
"""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import filterfalse, groupby
from pathlib import Path

from fsspec.utils import glob_translate

from dali_aesthetic.config import at_home
from dali_aesthetic.shards import earlier_runs
from dali_aesthetic.shards.formats import COMPRESSED, KINDS, Kind, extension
from dali_aesthetic.shards.listing import (
    InputError,
    LeftOut,
    common_parent,
    expand_braces,
    list_lines,
    missing,
    walk,
    why_left_out,
)
from dali_aesthetic.stores.access import list_files
from dali_aesthetic.stores.location import fixed_root, is_url, parent
from dali_aesthetic.stores.open import store_of
from dali_aesthetic.stores.store import StoreUnusable, told

_PLAIN = re.compile(r"[^*?\[{]*\.(\w+)", re.DOTALL)
_SHOWN = 5
_NOUN: dict[Kind, str] = {
    "tar": "a tar",
    "folder": "an image",
    "parquet": "a Parquet file",
    "embeddings": "a .npy of embeddings",
}


@dataclass(frozen=True, slots=True)
class Found:
    """Files of one kind; shards are named by their paths below `root`. `kind` is None where `files` is empty.

    Of images `files` holds the sidecars too, unless `images_only`. `ordered` files keep their order.
    `left_out` are entries of folders that were not taken, each with its kind.
    """

    root: str
    kind: Kind | None = None
    files: Sequence[str] = ()
    images_only: bool = False
    ordered: bool = False
    left_out: tuple[LeftOut, ...] = ()


def texts_of(inputs: str | Path | Sequence[str | Path]) -> list[str]:
    """`inputs` as texts, a leading `~/` as the home folder."""
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    return [at_home(str(text)) for text in given]


@dataclass(frozen=True, slots=True)
class _Search:
    """What to look for in folders, and where not to look."""

    exclude: str = ""
    wanted: Kind | None = None
    follow_links: bool = False


def resolve(
    texts: Sequence[str], exclude: str = "", wanted: Kind | None = None, *, follow_links: bool = False
) -> Found:
    """The files that `texts` name together; folders below `exclude` (the output) are not looked into.

    Links of a folder to outside of it are left out unless `follow_links`. Of a folder of several kinds
    `wanted` is taken; without it Parquet and `.npy` beside tars or images are their metadata, and so is
    Parquet beside embeddings. Raises InputError where nothing is found, where the kinds differ or are not
    `wanted`, and for images and embeddings at a URL.
    """
    if not texts:
        raise InputError("no input; give a tar, a pattern, a folder or @list.txt")
    search = _Search(exclude, wanted, follow_links)
    found = _merge([_resolve(text, search) for text in texts])
    if found.kind is None:
        raise InputError(f"{', '.join(texts)}: nothing there but the output {exclude}")
    if wanted and found.kind != wanted:
        raise InputError(f"{found.files[0]} is {_NOUN[found.kind]}; give {_NOUN[wanted]} or a folder of them")
    if found.kind == "tar":
        return found
    if found.kind != "parquet" and (url := next(filter(is_url, found.files), "")):
        raise InputError(f"{url} is {_NOUN[found.kind]}, which must be local; download it")
    if found.kind == "folder":
        left_out: list[LeftOut] = []
        beside = _beside(found, follow_links, left_out) if found.images_only else ()
        files = [*found.files, *beside]
        return replace(found, files=files, images_only=False, left_out=(*found.left_out, *left_out))
    return replace(found, root=_parent_of_all(found.files))


def kind_of_first(texts: Sequence[str]) -> Kind | None:
    """The kind of the first of `texts`, by its name where that tells; None where it can't be found.

    `resolve` makes sure that the others are of the same kind.
    """
    try:
        text = next(iter(texts), "")
        if text.startswith("@"):
            text = next(list_lines(text[1:]), "")
        if is_url(text) or not os.path.isdir(text):
            kind = KINDS.get(extension(text))
            if kind or is_url(text):
                return kind
        return resolve([text], follow_links=True).kind
    except (InputError, OSError):
        return None


def matcher(url: str) -> tuple[str, Callable[[str], bool]]:
    """Where a folder or glob at a URL is to be listed, and whether it holds a URL from there."""
    url = url.rstrip("/")
    if not glob.has_magic(url):
        return url, lambda _: True
    fits = re.compile(glob_translate(url)).match
    return fixed_root(url), lambda one: fits(one) is not None


def _resolve(text: str, search: _Search) -> Found:
    if text.startswith("@"):
        return _list_file(text[1:], search)
    if not text:
        raise InputError("an empty input; give a tar, a pattern, a folder or @list.txt")
    if is_url(text):
        return (_braces if "{" in text else _remote)(text, search)
    if os.path.isdir(text):
        return _folder(text, search)
    if os.path.isfile(text):
        return _file(text)
    if "{" in text:
        return _braces(text, search)
    if glob.has_magic(text):
        return _glob(text, search)
    raise InputError(f"{text} does not exist{_current_folder(text)}")


def _merge(found: Sequence[Found]) -> Found:
    """Several as one, named from their common parent. Raises InputError where their kinds differ."""
    if len(found) == 1:
        return found[0]
    first = next((one for one in found if one.kind), None)
    if first is None:
        return Found("")
    for other in found:
        if first.kind and other.kind and other.kind != first.kind:
            raise InputError(
                f"{first.files[0]} is {_NOUN[first.kind]}, and {other.files[0]} {_NOUN[other.kind]}; "
                "the inputs of a run are of one kind: give each kind to a run of its own"
            )
    return Found(
        root=common_parent(one.root for one in found),
        kind=first.kind,
        files=[file for one in found for file in one.files],
        images_only=any(one.images_only for one in found),
        ordered=any(one.ordered for one in found),
        left_out=tuple(entry for one in found for entry in one.left_out),
    )


def _members(texts: Iterable[str], search: _Search) -> Found:
    """The files that many texts name. A name with a known extension is taken without a look at the disk."""
    parts = []
    for kind, group in groupby(texts, _plain_kind):
        if kind is None:
            parts += [_resolve(text, search) for text in group]
        else:
            files = list(group)
            parts.append(Found(_parent_of_all(files), kind, files, images_only=kind == "folder"))
    return _merge(parts)


def _plain_kind(text: str) -> Kind | None:
    """The kind of a text that names one file with a known extension."""
    match = _PLAIN.fullmatch(text)
    return KINDS.get(match[1].lower()) if match else None


def _parent_of_all(files: Iterable[str]) -> str:
    in_folders = {file.rpartition("/")[0]: file for file in files}
    return common_parent(map(parent, in_folders.values()))


def _list_file(path: str, search: _Search) -> Found:
    found = _members(list_lines(path), search)
    if not found.files:
        raise InputError(f"the list file {path} names no file (all lines are blank or comments)")
    _check_exist(found.files, f"the list file {path}")
    return replace(found, ordered=True)


def _braces(text: str, search: _Search) -> Found:
    members = expand_braces(text)
    _check_exist([member for member in members if not glob.has_magic(member)], f"the pattern {text}")
    return replace(_members(members, search), root=fixed_root(text))


def _glob(text: str, search: _Search) -> Found:
    found = sorted(glob.iglob(text, recursive=True))
    if not found:
        raise InputError(f"the pattern {text} matches nothing{_current_folder(text)}")
    # A folder's other files are left out too; where there is nothing else, they are refused.
    found = [path for path in found if _is_input(path)] or found
    if search.exclude:
        below = os.path.join(os.path.abspath(search.exclude), "")
        found = [path for path in found if not os.path.join(os.path.abspath(path), "").startswith(below)]
    return replace(_members(found, search), root=fixed_root(text))


def _is_input(path: str) -> bool:
    return bool(_kind_of_name(path)) or os.path.isdir(path)


def _check_exist(paths: Sequence[str], what: str) -> None:
    """Raises InputError naming the first local `paths` that don't exist."""
    if absent := missing(filterfalse(is_url, paths)):
        shown = ", ".join(absent[:_SHOWN]) + (", …" if len(absent) > _SHOWN else "")
        raise InputError(
            f"{what}: {len(absent)} of its {len(paths)} files do not exist: {shown}"
            f"{_current_folder(absent[0])}"
        )


def _current_folder(path: str) -> str:
    return "" if os.path.isabs(path) else f" (looked for in {os.getcwd()})"


def _file(path: str) -> Found:
    if kind := KINDS.get(extension(path)):
        return Found(os.path.dirname(path), kind, (path,), images_only=kind == "folder")
    _check_not_compressed(path)
    raise InputError(
        f"{path} is neither a .tar nor a folder, an image, a .parquet or a .npy; "
        f"a list of paths is given as @{path}"
    )


def _check_not_compressed(path: str) -> None:
    if path.lower().endswith(COMPRESSED):
        raise InputError(f"{path} is compressed, so samples can't be copied from it; decompress it first")


def _beside(found: Found, follow_links: bool, left_out: list[LeftOut]) -> Iterator[str]:
    """The other files in the folders of images, among which their sidecars are."""
    root = os.path.realpath(found.root)
    for folder in {os.path.dirname(image) for image in found.files}:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                of_its_own = KINDS.get(extension(entry.name)) in ("folder", "tar")
                if entry.name.startswith(".") or of_its_own or entry.is_dir():
                    continue
                if kind := why_left_out(entry, root, follow_links):
                    left_out.append((kind, os.path.join(folder, entry.name)))
                else:
                    yield os.path.join(folder, entry.name)


def _folder(path: str, search: _Search) -> Found:
    left_out: list[LeftOut] = []
    there = _by_kind(walk(path, left_out, search.exclude, follow_links=search.follow_links))
    records = [name for name in there[""] if earlier_runs.is_record(name)]
    is_written = earlier_runs.written_by(records)
    tars, images = there["tar"], there["folder"]
    if images:
        there["tar"] = tars = list(filterfalse(is_written, tars))  # those were made of the images
    if tars and images and not search.wanted:
        raise InputError(
            f"{path} holds both {len(tars)} tars (like {tars[0]}) and "
            f"{len(images)} images (like {images[0]}); "
            f"give the tars as a pattern ({os.path.join(path, '**', '*.tar')}) or a folder of one kind"
        )
    kind = search.wanted or _kind_among(there, is_written)
    names = there[kind] if kind else []
    if kind == "folder":
        names = earlier_runs.without_copies(path, images, records, kind)
        others = there["parquet"] + there["embeddings"] + there[""]
        names = names + (others if len(names) == len(images) else list(filterfalse(is_written, others)))
    elif kind == "embeddings":
        names = _of_images(path, names)
    elif kind:
        names = earlier_runs.without_copies(path, names, records, kind)
    if not names:
        missed = f".npy of {search.wanted}" if search.wanted else ".tar, no .parquet and no image file"
        compressed = there["compressed"]
        hint = f"; it has compressed tars (like {compressed[0]}): decompress them first" if compressed else ""
        if left_out:
            hint += f"; {len(left_out)} {left_out[0][0]} (like {left_out[0][1]})"
        raise InputError(
            f"nothing to do in {path}: no {missed} in it or below ({len(there[''])} other files){hint}"
        )
    files = [os.path.join(path, name) for name in sorted(names)]
    return Found(path, kind, files, left_out=tuple(left_out))


def _by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """`names` by their kind, by `compressed`, and by the empty text for all others."""
    there = defaultdict[str, list[str]](list)
    for name in names:
        there[_kind_of_name(name)].append(name)
    return there


def _kind_of_name(name: str) -> str:
    """The kind of the file `name`, `compressed`, or the empty text for all others."""
    return KINDS.get(extension(name)) or ("compressed" if name.lower().endswith(COMPRESSED) else "")


def _kind_among(there: dict[str, list[str]], is_written: Callable[[str], bool]) -> Kind | None:
    """The kind that a folder's files make of it; `is_written` tells files of earlier runs."""
    if there["tar"]:
        return "tar"
    if there["folder"]:
        return "folder"
    kinds: tuple[Kind, ...] = ("embeddings", "parquet")
    own = (kind for kind in kinds if not all(map(is_written, there[kind])))
    return next(own, None) or next((kind for kind in kinds if there[kind]), None)


def _of_images(folder: str, names: list[str]) -> list[str]:
    """In clip-retrieval's and LAION's layouts the `.npy` in folders `img_emb`; elsewhere all."""
    if os.path.basename(os.path.normpath(folder)) == "img_emb":
        return names
    return [name for name in names if "img_emb" in name.split("/")[:-1]] or names


def _remote(text: str, search: _Search) -> Found:
    """A file, a glob or a folder at a URL, in at most one listing of its store."""
    if search.wanted == "embeddings":
        raise InputError(f"{text}: embeddings are mapped into memory, so they must be local; download them")
    if kind := _plain_kind(text):
        return Found(parent(text), kind, (text,))
    _check_not_compressed(text)
    text = text.rstrip("/")
    root, fits = matcher(text)
    below = search.exclude.rstrip("/") + "/" if search.exclude else "\0"
    try:
        store_of(text)
        names = list(list_files(root))
    except StoreUnusable as error:
        raise InputError(str(error)) from error
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{text} can't be listed: {told(error, text)}") from error
    own = [name for name in names if not f"{root}/{name}".startswith(below) and fits(f"{root}/{name}")]
    there = _by_kind(own)
    records = [name for name in there[""] if earlier_runs.is_record(name)]
    kind = _kind_among(there, earlier_runs.written_by(records))
    if kind is None:
        raise InputError(
            f"{text} holds no .tar and no .parquet ({len(names)} other files); images must be local"
        )
    if kind in ("folder", "embeddings"):
        hint = f", or give the Parquet as a pattern ({root}/**/*.parquet)" if there["parquet"] else ""
        raise InputError(
            f"{text} holds {_NOUN[kind]} ({there[kind][0]}), which must be local: download the files{hint}"
        )
    found = there[kind] if root != text else earlier_runs.without_copies(root, there[kind], records, kind)
    return Found(root, kind, [f"{root}/{name}" for name in found])
