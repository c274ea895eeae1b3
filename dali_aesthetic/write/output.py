"""An output at the start of a run: the check that it belongs to the run, what is still to do, clean-up."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from dali_aesthetic import layout
from dali_aesthetic.overlap import pool
from dali_aesthetic.stores.access import create, exists, open_file
from dali_aesthetic.stores.location import is_url, join, parent
from dali_aesthetic.types import ConfigError, Shard, ShardReport
from dali_aesthetic.write.files import TEMPORARY, is_leftover, publish, sync_folder, write_temporary
from dali_aesthetic.write.rows import read_columns

_ABSENT = "(not set)"
_CUT_FLAGS = {"min_raw": "--raw-threshold", "max_raw": "--max-raw-threshold", "where": "--where"}
_CUT = tuple(f"{name}: " for name in (*_CUT_FLAGS, "output_format"))
_KINDS = {
    "scored_by": "the samples that `filter` cut",
    "run": "the shards that `compact` packed",
    "input_kind": "the scores of stored embeddings",
}
_MOST_STATS, _STATS_AT_ONCE = 2000, 16
"""Stats of shards done before that a rerun reads: each is a request to a store."""


class OutputMismatch(ConfigError):
    """The output holds shards of another input, or the input itself."""


def open_output(output: str | Path, record: Mapping[str, Any], shards: Sequence[Shard]) -> Sequence[Shard]:
    """Writes or checks the run record of `output` and returns the shards still to do, in their order.

    Removes temporary files of dead processes. Raises RunMismatch or OutputMismatch (ValueErrors) where the
    output belongs to another run or input, or holds the input itself, and OSError where it can't be written.
    """
    config = record.get(layout.CONFIG, {})
    _check_apart(os.fspath(output), shards, writes_tars=not config.get("scores_only"))
    if whole := config.get("part_of"):  # where the cut will write: refused before hours of scoring
        _check_apart(whole, shards)
    write_run_record(output, record)
    clean_leftovers(output)
    return pending_shards(output, shards)


def clean_leftovers(output: str | Path) -> int:
    """Removes the temporary files of dead processes and returns their number. At a URL there are none."""
    if is_url(os.fspath(output)):
        return 0
    root = Path(output)
    below = (path for folder in layout.FOLDERS for path in (root / folder).rglob(TEMPORARY))
    dead = [path for path in (*root.glob(TEMPORARY), *below) if is_leftover(path)]
    for path in dead:
        path.unlink(missing_ok=True)
    return len(dead)


def pending_shards(output: str | Path, shards: Sequence[Shard]) -> Sequence[Shard]:
    """The shards that are not done. Raises OutputMismatch where a folder changed since, or a list file names
    other shards."""
    done = layout.committed_names(output)
    if shards and shards[0].kind == "folder":
        _check_fingerprints(os.fspath(output), shards, done)
    if not done:
        return shards
    _check_source(os.fspath(output), shards, done)
    return _Some(shards, (index for index, shard in enumerate(shards) if shard.name not in done))


def earlier_reports(
    output: str | Path, shards: Sequence[Shard], left: Sequence[Shard]
) -> Iterator[ShardReport]:
    """The reports of the `shards` that are done: those that are not `left`. Damage is a warning too.

    Of many the first are read, and a last one without a name has a warning that says of how many that isn't
    so. A report that can't be read has no samples.
    """
    num_done = len(shards) - len(left)
    with pool(_STATS_AT_ONCE, "stats") as threads:
        done = islice(_without(shards, left) if num_done else (), _MOST_STATS)
        yield from threads.map(partial(_report_of, output), done)
    if num_done > _MOST_STATS:
        more = f"shards done before whose warnings `verify` shows: {num_done - _MOST_STATS}"
        yield ShardReport(name="", source=os.fspath(output), warnings=(more,))


def _without(shards: Iterable[Shard], left: Iterable[Shard]) -> Iterator[Shard]:
    """The `shards` that are not `left`; both are in one order."""
    waiting = iter(left)
    next_left = next(waiting, None)
    for shard in shards:
        if next_left is not None and shard.index == next_left.index:
            next_left = next(waiting, None)
        else:
            yield shard


def _report_of(output: str | Path, shard: Shard) -> ShardReport:
    try:
        stats = layout.read_stats(output, shard.name)
    except (layout.BadStats, OSError):
        return ShardReport(name=shard.name, source=shard.source)  # `verify` says what is wrong with it
    damage = stats.get("damage")
    return ShardReport(
        name=shard.name,
        source=shard.source,
        num_samples=stats.get("num_samples", 0),
        num_kept=stats.get("num_kept", 0),
        statuses=stats.get("statuses", {}),
        removed=stats.get("removed", ()),
        warnings=(*stats.get("warnings", ()), *([f"damaged: {damage}"] if damage else ())),
    )


class _Some(Sequence[Shard]):
    """A view of `shards`, which may be a million, at the indices `left`."""

    def __init__(self, shards: Sequence[Shard], left: Iterable[int]) -> None:
        self._shards, self._left = shards, array("q", left)

    def __len__(self) -> int:
        return len(self._left)

    @overload
    def __getitem__(self, place: int) -> Shard: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Shard]: ...
    def __getitem__(self, place: int | slice) -> Shard | Sequence[Shard]:
        if isinstance(place, slice):
            return _Some(self._shards, self._left[place])
        return self._shards[self._left[place]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def _check_apart(output: str, shards: Iterable[Shard], writes_tars: bool = True) -> None:
    """Raises OutputMismatch for an input in a folder of the output, whose files would replace it."""
    own = [join(output, folder) for folder in layout.FOLDERS if writes_tars or folder != layout.SHARDS]
    if not is_url(output):
        own = [os.path.realpath(folder) for folder in own if os.path.isdir(folder)]
    if not own:
        return  # a new output holds no input: a million shards need not be looked at
    for folder in {shard.source if shard.kind == "folder" else parent(shard.source) for shard in shards}:
        place = folder if is_url(folder) else os.path.realpath(folder)
        if any(f"{place}/".startswith(f"{one}/") for one in own):
            raise OutputMismatch(
                f"the input in {folder} lies where --output {output} puts its own files, which would replace "
                "it; give another output folder"
            )


def _check_fingerprints(output: str, shards: Iterable[Shard], done: set[str]) -> None:
    by_name = {shard.name: shard for shard in shards}
    if gone := sorted(done - by_name.keys()):
        raise OutputMismatch(
            f"{output} holds {len(gone)} shards that the input no longer has (like {gone[0]}): images were "
            "removed since. Give another output folder."
        )
    for name in sorted(done):
        if layout.read_stats(output, name).get("fingerprint") != by_name[name].fingerprint:
            raise OutputMismatch(
                f"the images of shard {name} in {by_name[name].source} changed since it was written: "
                f"{_changes(output, by_name[name])}. Give another output folder."
            )


def _check_source(output: str, shards: Sequence[Shard], done: set[str]) -> None:
    """Raises OutputMismatch where a changed list file gives the names of shards that are done to others.

    One shard is checked: of a million, each would be a file to read.
    """
    name = next((shard.name for shard in shards if shard.name in done), min(done))
    try:
        source = layout.read_stats(output, name)["source"]
    except (layout.BadStats, KeyError):
        return  # `verify` says what is wrong with it
    now = next((shard for shard in shards if shard.name == name or shard.source == source), None)
    if now is not None and (now.name, _place(now.source)) != (name, _place(source)):
        raise OutputMismatch(
            f"{output} holds {name}, made of {source}, but {now.source} is to be {now.name} now: the input's "
            "list of shards changed. Give another output folder, or the old list"
        )


def _place(source: str) -> str:
    """One spelling for all paths of a local file."""
    return source if is_url(source) else os.path.realpath(source)


def _changes(output: str, shard: Shard) -> str:
    """The difference between the shard's images and its scores, for messages."""
    try:
        with open_file(join(output, layout.scores_file(shard.name))) as file:
            sources = read_columns(file, ["source_shard"])
    except OSError:
        return "its scores can't be read"
    old = set(sources.column(0).to_pylist())
    now = {os.path.join(shard.source, name) for name in shard.files}
    if gone := sorted(old - now):
        return f"{len(gone)} images are no longer in it (like {gone[0]})"
    return "files were added, or have another size"


class RunMismatch(ConfigError):
    """The output belongs to a run with another identity."""


def write_run_record(output: str | Path, record: Mapping[str, Any]) -> None:
    """Writes the run record of a new output, or checks that the one there has the same identity.

    Raises RunMismatch naming each field that differs and both values.
    """
    final = join(output, layout.RECORD)
    if not exists(final):
        text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n"
        write_once(final, text.encode())
    if differences := check_run_record(output, record):
        there, here = (_kind(each[layout.IDENTITY]) for each in (layout.read_record(output), record))
        if there != here:
            other = f"{os.fspath(output).rstrip('/')}-2"
            raise RunMismatch(
                f"{output} holds {there}; {here} need an output of their own: give --output {other}"
            )
        listed = "\n  ".join(differences)
        if all(difference.startswith(_CUT) for difference in differences):
            raise RunMismatch(
                f"{output} holds the results of another cut; its {layout.RECORD} differs in:\n  {listed}\n"
                f"Its scores can be cut again without a GPU: {_filter_command(output, record)}"
            )
        raise RunMismatch(
            f"{output} holds the results of another run; its {layout.RECORD} differs in:\n  {listed}\n"
            "Give the same options again, or another output folder."
        )


def _kind(identity: Mapping[str, Any]) -> str:
    """What an output holds, by the identity in its run record."""
    for field, kind in _KINDS.items():
        if field in identity:
            return kind
    return "the results of a run"


def _filter_command(output: str | Path, record: Mapping[str, Any]) -> str:
    """The command that makes this cut from the scores in `output`, to be pasted into a shell."""
    identity = record[layout.IDENTITY]
    words = layout.recut_words(record, output)
    for name, flag in _CUT_FLAGS.items():
        if (value := identity.get(name)) is not None:
            words += [flag, value if isinstance(value, str) else _bound(value)]
    return shlex.join(words)


def check_run_record(output: str | Path, record: Mapping[str, Any]) -> list[str]:
    """Where the identity of `record` differs from the one in `output`: `FIELD: OLD there, NEW now`.

    Empty if they agree or `output` has no record yet. Raises RunMismatch for a record that can't be read.
    """
    if not exists(join(output, layout.RECORD)):
        return []
    try:
        old = dict(_flat(layout.read_record(output)[layout.IDENTITY]))
    except layout.NotARun as error:
        raise RunMismatch(f"{error}; give another output folder") from error
    new = dict(_flat(json.loads(json.dumps(record[layout.IDENTITY]))))
    return [
        f"{field}: {_shown(field, old)} there, {_shown(field, new)} now"
        for field in sorted(old.keys() | new.keys())
        if old.get(field, _ABSENT) != new.get(field, _ABSENT)
    ]


def _shown(field: str, identity: Mapping[str, Any]) -> str:
    """The value of `field` as the user gives it; the record leaves out the output format `tar`."""
    value = identity.get(field, "tar" if field == "output_format" else _ABSENT)
    return _bound(value) if field in ("min_raw", "max_raw") and isinstance(value, float) else repr(value)


def _bound(raw: float) -> str:
    """The shortest text of the float32 that a bound is: 4.6, not 4.599999904632568."""
    return np.format_float_positional(np.float32(raw), trim="-")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def write_once(location: str | Path, content: bytes) -> None:
    """Writes a file (and its folder) or an object, unless there is one already, which then stays."""
    if is_url(os.fspath(location)):
        create(os.fspath(location), content)
        return
    final = Path(location)
    temporary = write_temporary(final, content)
    try:
        os.link(temporary, final)
        sync_folder(final.parent)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links: of two simultaneous first runs the last wins, and both compare.
        publish(temporary, final)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
