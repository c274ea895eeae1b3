"""Oddities of the input: counted in a shard, which states them as warnings, and summed over shards."""

from __future__ import annotations

from collections.abc import Iterable

_EXAMPLES_SHOWN = 3


class Oddities:
    """Oddities of a shard: counts by kind in order of appearance, with first examples."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, kind: str, example: str) -> None:
        """Counts one oddity; `example` is the name it concerns, or empty."""
        count, examples = self._found.get(kind, (0, []))
        if example and len(examples) < _EXAMPLES_SHOWN:
            examples.append(example[:200])
        self._found[kind] = (count + 1, examples)

    def warnings(self) -> tuple[str, ...]:
        """One line a kind: `KIND: COUNT (first: …)`."""
        return tuple(
            f"{kind}: {count}" + (f" (first: {', '.join(map(repr, examples))})" if examples else "")
            for kind, (count, examples) in self._found.items()
        )


class WarningCounts:
    """Warnings of shards by kind: how many, in how many shards, and the first of them.

    A warning is a line of `Oddities`, or any other sentence, which counts once.
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int, str]] = {}

    def add(self, source: str, warnings: Iterable[str]) -> None:
        """Counts the warnings of the shard `source`."""
        for warning in warnings:
            kind, _, rest = warning.partition(": ")
            number, _, examples = rest.partition(" ")
            count, shards, first = self._found.get(kind, (0, 0, ""))
            first = first or " ".join([source, *([examples] if number.isdigit() else [rest])]).strip()
            self._found[kind] = (count + (int(number) if number.isdigit() else 1), shards + 1, first)

    def lines(self) -> list[str]:
        """One line a kind."""
        return [
            f"{kind}: {count:,} in {shards:,} shard{'s'[: shards > 1]}, first in {first}"
            for kind, (count, shards, first) in self._found.items()
        ]

    def as_dict(self) -> dict[str, dict[str, int | str]]:
        """For JSON, by kind."""
        return {
            kind: {"count": count, "shards": shards, "first": first}
            for kind, (count, shards, first) in self._found.items()
        }
