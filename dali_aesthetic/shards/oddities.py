"""Oddities of a shard that lost nothing: counted, with their first few examples."""

from __future__ import annotations

_EXAMPLES = 3


class Oddities:
    """Counts by kind, in the order of their first appearance."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, kind: str, example: str) -> None:
        """Counts one oddity; `example` is the name it concerns, or empty."""
        count, examples = self._found.get(kind, (0, []))
        if example and len(examples) < _EXAMPLES:
            examples.append(example[:200])
        self._found[kind] = (count + 1, examples)

    def warnings(self) -> tuple[str, ...]:
        """One line a kind: `KIND: COUNT (first: …)`."""
        return tuple(
            f"{kind}: {count}" + (f" (first: {', '.join(map(repr, examples))})" if examples else "")
            for kind, (count, examples) in self._found.items()
        )
