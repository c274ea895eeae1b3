"""A million paths in the memory of their characters, and the shards made of them when they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import starmap
from operator import eq
from typing import overload

from dali_aesthetic.types import Shard

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
