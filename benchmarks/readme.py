"""The parts of a document that a command writes: from `<!-- bench:begin NAME -->` to `<!-- bench:end -->`."""

from __future__ import annotations

import re
from collections.abc import Mapping

_BLOCK = re.compile(r"(<!-- bench:begin (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- bench:end -->)", re.DOTALL)
_BEGIN, _END = "<!-- bench:begin ", "<!-- bench:end -->"


def fill(document: str, blocks: Mapping[str, str]) -> str:
    """The document with each of its blocks replaced.

    Raises ValueError for a block that nothing is known of, and for markers that don't pair.
    """
    found = list(_BLOCK.finditer(document))
    if not len(found) == document.count(_BEGIN) == document.count(_END):
        raise ValueError("a bench:begin without its bench:end, or the other way round")
    unknown = {match["name"] for match in found} - blocks.keys()
    if unknown:
        raise ValueError(
            f"no such block: {', '.join(sorted(unknown))}; there are {', '.join(sorted(blocks))}"
        )
    return _BLOCK.sub(lambda match: match[1] + _body(blocks[match["name"]]) + match[4], document)


def names(document: str) -> list[str]:
    """The names of the document's blocks, in order."""
    return [match["name"] for match in _BLOCK.finditer(document)]


def _body(text: str) -> str:
    return f"{text.strip()}\n" if text.strip() else ""
