"""Outputs of other runs among an input: what they kept is a copy of what is there anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

RECORD = "/run.json"
"""What the path of a run's record below an input ends with; the input itself may be an output."""
_ROOMS = ("shards", "quarantine", "scores", "embeddings")
"""Where a run, a filter and a compact put tars and Parquet."""
_SHOWN = 3


def written_by(records: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path is of the runs that left these `records`; all are relative to the input, with `/`."""
    rooms = tuple(f"{record[: -len(RECORD)]}/{room}/" for record in records for room in _ROOMS)
    return lambda path: path.startswith(rooms)


def mixture(root: str, paths: Iterable[str], records: Sequence[str], suffix: str = "tar") -> str:
    """Why an input folder can't be taken that holds shards and also what runs kept of some; else empty.

    Where all of `paths` are of runs they are what is meant: outputs that somebody gathered in a folder.
    """
    if not records:
        return ""
    is_written, written, own = written_by(records), list[str](), 0
    for path in paths:
        if is_written(path):
            written.append(path)
        else:
            own += 1
    if not written or not own:
        return ""
    runs = [record[: -len(RECORD)] for record in records if any(map(written_by([record]), written))]
    root = root.rstrip("/")
    named = ", ".join(f"{root}/{run}" for run in runs[:_SHOWN]) + (", …" if len(runs) > _SHOWN else "")
    return (
        f"{root} holds {own} shards and, below it, what another run wrote ({named}): its samples would be "
        f"scored twice. Move it away, or give the shards as a pattern ({root}/*.{suffix}) or as @list.txt"
    )
