"""Outputs of other runs among an input: what a run kept of this input is a copy of what is there anyway."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence

from dali_aesthetic.shards.listing import InputError
from dali_aesthetic.stores.access import read_bytes
from dali_aesthetic.stores.location import fixed_root, is_url, parent

RECORD = "/run.json"
"""What the path of a run's record below an input ends with; the input itself may be an output."""
_LOG = logging.getLogger(__name__)
_ROOMS = ("shards", "quarantine", "scores", "embeddings")
"""Where a run, a filter and a compact put tars and Parquet."""
_SHOWN = 3


def written_by(records: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path is of the runs that left these `records`; all are relative to the input, with `/`."""
    rooms = tuple(f"{record[: -len(RECORD)]}/{room}/" for record in records for room in _ROOMS)
    return lambda path: path.startswith(rooms)


def without_copies(root: str, paths: list[str], records: Sequence[str], suffix: str = "tar") -> list[str]:
    """The `paths` below the input `root` without what other runs kept of this very input.

    Where all are of runs they are what is meant: outputs that somebody gathered in a folder. Raises
    InputError for shards beside the output of a run that read something else, or doesn't tell what.
    """
    if not records:
        return paths
    is_written = written_by(records)
    own = [path for path in paths if not is_written(path)]
    if not own or len(own) == len(paths):
        return paths
    runs = [record for record in records if any(map(written_by([record]), paths))]
    if strange := [run for run in runs if not _has_read(root, run)]:
        raise InputError(_refusal(root, len(own), strange, suffix))
    _LOG.info("%s: what runs wrote below it is not input: %s", root, _named(root, runs))
    return own


def _has_read(root: str, record: str) -> bool:
    """Whether the run says that it read the input `root`, or a part of it; a compact, that it packed one."""
    try:
        content = json.loads(read_bytes(f"{root.rstrip('/')}/{record}"))
        texts = content["identity"].get("input") or [content["config"]["packed_from"]]
        return all(_is_below(_place(text), root) for text in texts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _place(text: str) -> str:
    """The folder that an input text is about: itself, a tar's, or the first ones of a pattern."""
    root = fixed_root(text)
    return parent(root) if root.lower().endswith((".tar", ".parquet")) else root


def _is_below(folder: str, root: str) -> bool:
    if is_url(root) or is_url(folder):
        inner, outer = folder, root
    else:
        inner, outer = os.path.realpath(folder), os.path.realpath(root)
    return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")


def _refusal(root: str, num_own: int, runs: Sequence[str], suffix: str) -> str:
    return (
        f"{root} holds {num_own} shards and, below it, what a run kept of another input: "
        f"{_named(root, runs)}. Move it away, or give what is meant as patterns "
        f"({root.rstrip('/')}/*.{suffix}) or as @list.txt"
    )


def _named(root: str, runs: Sequence[str]) -> str:
    shown = [f"{root.rstrip('/')}/{run[: -len(RECORD)]}" for run in runs[:_SHOWN]]
    return ", ".join(shown) + (", …" if len(runs) > _SHOWN else "")
