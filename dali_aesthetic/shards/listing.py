"""Names from folders, patterns and list files: walking, brace expansion, existence checks."""

from __future__ import annotations

import io
import math
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile

from braceexpand import braceexpand

from dali_aesthetic.config import at_home
from dali_aesthetic.stores.access import read_bytes
from dali_aesthetic.stores.location import is_url
from dali_aesthetic.stores.store import StoreUnusable, told
from dali_aesthetic.types import ConfigError

MAX_BRACE_MEMBERS = 10_000_000
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")


class InputError(ConfigError):
    """The input is missing or ambiguous; the text names it and the fix."""


LeftOut = tuple[str, str]
"""The kind of an entry that is not taken, as a warning names it, and its path."""


def walk(
    root: str, left_out: list[LeftOut], exclude: str = "", *, follow_links: bool = False
) -> Iterator[str]:
    """Files below `root` as relative paths with `/`, hidden ones left out; each real folder once.

    What isn't taken is added to `left_out`: links to outside of `root`, unless `follow_links`, and what is no
    file.
    """
    excluded = os.path.realpath(exclude) if exclude else ""
    real_root = os.path.realpath(root)
    visited = {real_root}
    folders = [""]
    while folders:
        folder, below = folders.pop(), []
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if kind := why_left_out(entry, real_root, follow_links):
                    left_out.append((kind, f"{folder}{entry.name}"))
                elif entry.is_dir():
                    below.append(entry)
                else:
                    yield f"{folder}{entry.name}"
        # A directory's order depends on its file system, and the first link to a folder names its files.
        for entry in sorted(below, key=lambda entry: (entry.is_symlink(), entry.name)):
            real = os.path.realpath(entry.path)
            if real not in visited and real != excluded:
                visited.add(real)
                folders.append(f"{folder}{entry.name}/")


def why_left_out(entry: os.DirEntry[str], root: str, follow_links: bool) -> str:
    """The kind of an entry that is not taken from the real folder `root`; empty for a file and a folder.

    A broken link is taken: it becomes a row or an error, never a silent loss.
    """
    if entry.is_symlink():
        real = os.path.realpath(entry.path)
        if not follow_links and not f"{real}/".startswith(os.path.join(root, "")):
            return "links that leave the input folder left out (--follow-links takes them)"
        if not os.path.exists(real):
            return ""
    return "" if entry.is_file() or entry.is_dir() else "devices, pipes and sockets left out"


def missing(paths: Iterable[str]) -> list[str]:
    """The local `paths` that don't exist; lists each folder once instead of asking for each file."""
    listed: dict[str, frozenset[str]] = {}
    absent = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = _names(folder)
        # A second look: a folder without read permission can't be listed, but its files can be opened.
        if name not in listed[folder] and not os.path.lexists(path):
            absent.append(path)
    return absent


def _names(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder or "."))
    except OSError:
        return frozenset()


def list_lines(path: str) -> Iterator[str]:
    """The inputs in a list file (local or at a URL): its lines without blank ones and `#` comments.

    A byte order mark is skipped, and a leading `~/` is the home folder. Raises InputError.
    """
    try:
        # As bytes and line by line: one string of a million lines would take their memory twice.
        # Editors on Windows put a byte order mark before the first line.
        for raw in io.BytesIO(read_bytes(path).removeprefix(BOM_UTF8)):
            line = raw.decode().strip()
            if line[:1] == "@":
                raise InputError(f"the list file {path} holds another list ({line}); write its lines into it")
            if line and line[0] != "#":
                yield at_home(line)
    except UnicodeDecodeError as error:
        raise InputError(f"the list file {path} is not UTF-8 ({error}); save it as UTF-8") from error
    except (OSError, StoreUnusable) as error:
        raise InputError(f"the list file {path} can't be read: {told(error, path)}") from error


def expand_braces(text: str) -> list[str]:
    """The members of a brace pattern, in its order. Raises InputError where it is malformed or too large."""
    # braceexpand makes whole ranges before its first member.
    sizes = (abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(text))
    enough = MAX_BRACE_MEMBERS + 1
    try:
        members = [] if math.prod(sizes) > MAX_BRACE_MEMBERS else list(islice(braceexpand(text), enough))
    except ValueError as error:
        raise InputError(f"the pattern {text} is malformed ({error}); write {{00000..00123}}.tar") from error
    if not 0 < len(members) < enough:
        raise InputError(f"the pattern {text} has over {MAX_BRACE_MEMBERS} members; give a glob instead")
    if "{" in text and members == [text]:
        raise InputError(f"the braces of {text} hold no range and no list; write {{00000..00123}}.tar")
    return members


def common_parent(folders: Iterable[str]) -> str:
    """The deepest folder that holds all `folders`; empty where they share none (two buckets)."""
    absolute = {folder if is_url(folder) else os.path.abspath(folder) for folder in folders}
    levels = zip(*(folder.split("/") for folder in absolute), strict=False)
    return "/".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))
