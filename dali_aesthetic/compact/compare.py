"""A packed folder against the run that it was made of, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from dali_aesthetic.compact.kept import read_run
from dali_aesthetic.write.tar import END_MARKER

_PIECE = 1 << 20


def compare(packed: Path, names: Sequence[str], run: Path) -> str:
    """What differs, or an empty string: all tars of one, end markers off, are all tars of the other."""
    kept = [shard.name for shard in read_run(run).shards]
    ours, theirs = _pieces(packed, names), _pieces(run, kept)
    for one, other in zip_longest(_even(ours), _even(theirs), fillvalue=(b"", "")):
        if one[0] != other[0]:
            here, there = one[1] or "its end", other[1] or "its end"
            return f"{packed} differs from {run}: what is in {here} is not what is in {there}"
    return ""


def _pieces(folder: Path, names: Sequence[str]) -> Iterator[tuple[bytes, str]]:
    for name in names:
        path = folder / "shards" / f"{name}.tar"
        left = path.stat().st_size - len(END_MARKER)
        with path.open("rb") as tar:
            while left > 0 and (piece := tar.read(min(_PIECE, left))):
                left -= len(piece)
                yield piece, path.name


def _even(pieces: Iterator[tuple[bytes, str]]) -> Iterator[tuple[bytes, str]]:
    """The same bytes in pieces of one size, with the name of the file each ends in."""
    rest, name = b"", ""
    for piece, name in pieces:
        rest += piece
        while len(rest) >= _PIECE:
            yield rest[:_PIECE], name
            rest = rest[_PIECE:]
    if rest:
        yield rest, name
