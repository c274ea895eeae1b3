"""Outputs of earlier runs below an input: copies of samples that the input holds anyway."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence

from dali_aesthetic.layout import FOLDERS, IDENTITY, RECORD, NotARun, packed_from, read_record
from dali_aesthetic.shards.formats import KINDS, extension
from dali_aesthetic.shards.listing import InputError
from dali_aesthetic.stores.location import fixed_root, is_url, parent

_LOG = logging.getLogger(__name__)
_SHOWN = 3


def written_by(records: Iterable[str]) -> Callable[[str], bool]:
    """Tells whether a path belongs to an output with one of `records`; all are relative to the input."""
    folders = tuple(f"{_output(record)}/{folder}/" for record in records for folder in FOLDERS)
    return lambda path: path.startswith(folders)


def is_record(path: str) -> bool:
    """Whether a path below an input is a run record's. The input's own is not: an output may be an input."""
    return path.endswith(f"/{RECORD}")


def _output(record: str) -> str:
    return record.removesuffix(f"/{RECORD}")


def without_copies(root: str, paths: list[str], records: Sequence[str], kind: str) -> list[str]:
    """The `paths` below the input `root` without those that earlier runs wrote from this very input.

    If all of them are outputs, all are kept: somebody gathered outputs in a folder. Raises InputError for
    others beside the output of a run that read something else, or whose record can't be read.
    """
    if not records:
        return paths
    is_written = written_by(records)
    own = [path for path in paths if not is_written(path)]
    if not own or len(own) == len(paths):
        return paths
    runs = [record for record in records if any(map(written_by([record]), paths))]
    if strange := [run for run in runs if not _has_read(root, run)]:
        raise InputError(_refusal(root, len(own), strange, kind))
    _LOG.info("%s: what runs wrote below it is not input: %s", root, _shown(root, runs))
    return own


def _has_read(root: str, record: str) -> bool:
    """Whether the record names `root` or a part of it as the run's input, or as what a compact packed."""
    try:
        content = read_record(f"{root.rstrip('/')}/{_output(record)}")
        texts = content[IDENTITY].get("input") or [packed_from(content)]
        return all(_is_below(_place(text), root) for text in texts)
    except (OSError, NotARun, KeyError, TypeError, AttributeError):
        return False


def _place(text: str) -> str:
    """The folder of an input text: itself, the folder of a file, or the fixed part of a pattern."""
    root = fixed_root(text)
    return parent(root) if extension(root) in KINDS else root


def _is_below(folder: str, root: str) -> bool:
    if is_url(root) or is_url(folder):
        inner, outer = folder, root
    else:
        inner, outer = os.path.realpath(folder), os.path.realpath(root)
    return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")


def _refusal(root: str, num_own: int, runs: Sequence[str], kind: str) -> str:
    what, suffix = ("images", "jpg") if kind == "folder" else ("shards", kind)
    return (
        f"{root} holds {num_own} {what} and, below it, what a run kept of another input: "
        f"{_shown(root, runs)}. Move it away, or give what is meant as patterns "
        f"({root.rstrip('/')}/*.{suffix}) or as @list.txt"
    )


def _shown(root: str, runs: Sequence[str]) -> str:
    shown = [f"{root.rstrip('/')}/{_output(run)}" for run in runs[:_SHOWN]]
    return ", ".join(shown) + (", …" if len(runs) > _SHOWN else "")
