"""Images of a folder: which sidecars are theirs, and the key each gets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dali_aesthetic.shards.formats import IMAGE_RANK, extension


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """One sample of a folder: paths below the root, and the webdataset key.

    Images with the same `stem` (the key before it was made unique) are told apart by their extension.
    """

    key: str
    stem: str
    image: str
    sidecars: tuple[str, ...]

    def member(self, path: str) -> str:
        """The tar member's name of one of its files: the key, then the file's own extension."""
        suffix = path[len(_stem(self.image)) + 1 :]
        return f"{self.key}.{_printable(suffix)}"


def group_images(files: Iterable[str]) -> list[ImageFiles]:
    """The samples among `files` (relative paths), sorted by key; files that go with no image are left out.

    A sidecar has its image's name with another extension (`a.txt`) or added to it (`a.jpg.json`); one that
    fits several images goes with each. Dots in a name would cut webdataset's key, so they become `_`; names
    that would then share a key get their extension (`a_jpg`, `a_png`), and a number where that is not enough.
    """
    images: dict[str, list[str]] = defaultdict(list)
    sidecars: dict[str, list[str]] = defaultdict(list)
    for path in sorted(set(files)):
        if extension(path) in IMAGE_RANK:
            images[clean_key(_stem(path))].append(path)
        elif extension(path):
            sidecars[_stem(path)].append(path)
    taken = {key for key, paths in images.items() if len(paths) == 1}
    return [
        ImageFiles(key, group, path, (*sidecars.get(_stem(path), ()), *sidecars.get(path, ())))
        for group, paths in sorted(images.items())
        for key, path in _unique(group, paths, taken)
    ]


def clean_key(stem: str) -> str:
    """`stem` as a key: no dot in its last part, nothing unprintable, no part that climbs."""
    folder, slash, name = stem.rpartition("/")
    text = _printable(folder + slash + name.replace(".", "_"))
    parts = [part if part.strip(".") else "_" * max(1, len(part)) for part in text.split("/")]
    return "/".join(parts)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "_" for c in text)


def _unique(group: str, paths: list[str], taken: set[str]) -> Iterator[tuple[str, str]]:
    if len(paths) == 1:
        yield group, paths[0]
        return
    for path in paths:
        wanted = key = f"{group}_{extension(path)}"
        number = 2
        while key in taken:
            key = f"{wanted}_{number}"
            number += 1
        taken.add(key)
        yield key, path


def _stem(path: str) -> str:
    return path.rpartition(".")[0] if "." in path.rpartition("/")[2] else path
