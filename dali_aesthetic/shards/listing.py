"""Folders of this machine: the files below one, and which of many paths are there."""

from __future__ import annotations

import io
import math
import os
import re
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, starmap, takewhile
from operator import eq
from typing import overload

from braceexpand import braceexpand

from dali_aesthetic.stores.location import is_url
from dali_aesthetic.types import Shard


def walk(root: str, exclude: str = "") -> Iterator[str]:
    """Files below `root` as relative paths with `/`, hidden ones left out; each real folder once."""
    excluded = os.path.realpath(exclude) if exclude else ""
    visited = {os.path.realpath(root)}
    folders = [""]
    while folders:
        folder, below = folders.pop(), []
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    below.append(entry)
                elif entry.is_file() or entry.is_symlink():
                    # A link to nothing is listed too: it becomes a row or an error, never a silent loss.
                    yield f"{folder}{entry.name}"
        # A directory's order is its file system's, and the link by which a folder is reached names its files.
        for entry in sorted(below, key=lambda entry: (entry.is_symlink(), entry.name)):
            real = os.path.realpath(entry.path)
            if real not in visited and real != excluded:
                visited.add(real)
                folders.append(f"{folder}{entry.name}/")


def missing(paths: Iterable[str]) -> list[str]:
    """The local `paths` that don't exist; lists each folder once instead of asking for each file."""
    listed: dict[str, frozenset[str]] = {}
    absent = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = _names(folder)
        # Asked for itself too: a folder may be closed to listing, and open to who knows a name.
        if name not in listed[folder] and not os.path.lexists(path):
            absent.append(path)
    return absent


def _names(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder or "."))
    except OSError:
        return frozenset()


# FOLDED dali_aesthetic/shards/errors.py: What can be wrong with an input.


class InputError(ValueError):
    """The input names nothing to work on, or not clearly; the text says what and how to mend it."""


# FOLDED dali_aesthetic/shards/packed.py: A million paths in the memory of their characters, and the shards made of them when they are asked for.


_ENCODING = ("utf-8", "surrogateescape")


class PackedTexts(Sequence[str]):
    """Strings end to end in one buffer; about 8 bytes each come on top of their characters."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Adds a string at the end."""
        self._bytes += text.encode(*_ENCODING)
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        index = range(len(self))[place]
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode(*_ENCODING)

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends[1:]:
            yield self._bytes[start:end].decode(*_ENCODING)
            start = end


class TarShards(Sequence[Shard]):
    """Tar shards in order, each made anew when it is asked for. `name` gives the shard's name for its source.

    Equal to any sequence of equal shards.
    """

    def __init__(self, sources: Sequence[str], name: Callable[[str], str]) -> None:
        self._sources, self._name = sources, name

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
        return self._shard(index, self._sources[index])

    def __iter__(self) -> Iterator[Shard]:
        return starmap(self._shard, enumerate(self._sources))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self[:3]}, {len(self)} in all)"

    def _shard(self, index: int, source: str) -> Shard:
        return Shard(index=index, name=self._name(source), kind="tar", source=source)


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
    if "{" in text and members == [text]:
        raise InputError(f"the braces of {text} hold no range and no list; write {{00000..00123}}.tar")
    return members


def common_parent(folders: Iterable[str]) -> str:
    """The deepest folder that holds all `folders`; empty where they share none (two buckets)."""
    absolute = {folder if is_url(folder) else os.path.abspath(folder) for folder in folders}
    levels = zip(*(folder.split("/") for folder in absolute), strict=False)
    return "/".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _lines(path: str, content: bytes) -> Iterator[str]:
    # Editors on Windows put a byte order mark before the first line.
    for raw in io.BytesIO(content.removeprefix(BOM_UTF8)):
        line = raw.decode().strip()
        if line[:1] == "@":
            raise InputError(f"the list file {path} holds another list ({line}); write its lines into it")
        if line and line[0] != "#":
            yield line


MAX_BRACE_MEMBERS = 10_000_000


_ENOUGH = MAX_BRACE_MEMBERS + 1


_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")
