"""Folders of this machine: the files below one, and which of many paths are there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator


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
