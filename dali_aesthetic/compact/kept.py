"""The kept samples of a run as its output holds them, and their comparison with a packed output."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dali_aesthetic import layout
from dali_aesthetic.config import ConfigError
from dali_aesthetic.shards.listing import InputError
from dali_aesthetic.shards.members import split_name
from dali_aesthetic.shards.opened import map_file
from dali_aesthetic.shards.plan import plan_shards
from dali_aesthetic.shards.scan import TarDamage, scan_tar
from dali_aesthetic.types import Buffer

_PIECE = 1 << 20


class RunDamaged(ValueError):
    """A kept tar, its scores and its stats disagree."""


@dataclass(frozen=True, slots=True)
class KeptShard:
    """A committed shard of a run, from its stats."""

    name: str
    num_kept: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """The output of a run: its record, and its committed shards in name order."""

    folder: Path
    record: dict[str, Any]
    shards: tuple[KeptShard, ...]

    @property
    def num_kept(self) -> int:
        return sum(shard.num_kept for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    def digest(self) -> str:
        """A sha256 over names, counts and sizes. Another cut or another shard changes it."""
        text = "".join(f"{len(s.name)}:{s.name}:{s.num_kept}:{s.num_bytes}\n" for s in self.shards)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Unit:
    """A sample: the bytes from `start` to `end` of its tar, and `num_rows` rows of the scores.

    It has more than one row where samples with the same key lie side by side. Readers of tars take them for
    one sample, so they are never separated.
    """

    key: str
    start: int
    end: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class KeptSamples:
    """The kept samples of a shard: the bytes of the tar, the samples in it, and their rows in that order."""

    view: Buffer
    units: Sequence[Unit]
    rows: pa.Table


def read_run(folder: Path) -> Run:
    """The run in `folder`. Raises NotARun where there is none, and ConfigError for one that wrote no tars."""
    record = layout.read_record(folder)
    if layout.holds_embeddings(record):
        raise ConfigError(f"{folder} holds scores of stored embeddings: there is no image to pack")
    if layout.holds_scores_only(record):
        raise ConfigError(f"{folder} holds scores only: cut them with `filter` first, then pack its output")
    if layout.holds_files(record):
        raise ConfigError(f"{folder} holds image files, which aren't packed: cut it into tars with `filter`")
    shards = tuple(_facts(folder, name) for name in sorted(layout.committed_names(folder)))
    for shard in shards:
        if (folder / layout.shard_file(shard.name, layout.PARQUET)).exists():
            raise ConfigError(
                f"{folder} holds Parquet shards (like {shard.name}.parquet); only tars are packed: Parquet "
                "readers take the folder as one table"
            )
    return Run(folder, record, shards)


def check_finished(run: Run) -> None:
    """Raises ConfigError where shards of the run's input are not committed, or the input can't be listed."""
    config = run.record.get(layout.CONFIG, {})
    try:
        planned = plan_shards(
            config["input"], output=run.folder, follow_links=bool(config.get("follow_links"))
        )
    except (InputError, OSError, KeyError) as error:
        raise ConfigError(
            f"whether the run in {run.folder} is finished can't be told, because its input can't be listed "
            f"({error}); --allow-unfinished takes what is committed"
        ) from None
    done = {shard.name for shard in run.shards}
    if missing := [shard.name for shard in planned if shard.name not in done]:
        raise ConfigError(
            f"the run in {run.folder} is not finished: {len(missing)} of {len(planned)} shards are not "
            f"committed (like {missing[0]}). Finish it with the same command, or take what is committed with "
            "--allow-unfinished"
        )


def read_kept(run: Run, shard: KeptShard) -> KeptSamples:
    """The kept samples of a shard. Raises RunDamaged where tar, stats and scores disagree, and OSError."""
    path = run.folder / layout.shard_file(shard.name)
    view = map_file(str(path))
    rows = pq.read_table(run.folder / layout.scores_file(shard.name), filters=pc.field("kept"))
    counted = [(key, sum(1 for _ in same)) for key, same in groupby(rows.column("key").to_pylist())]
    try:
        found = list(_samples(view))
    except TarDamage as damage:
        raise RunDamaged(f"{path} is damaged ({damage}): `dali-aesthetic verify {run.folder}`") from None
    end = found[-1][2] if found else 0
    keys = [key for key, _, _ in found]
    if keys != [key for key, _ in counted] or len(rows) != shard.num_kept or end != shard.num_bytes:
        raise RunDamaged(
            f"{path} holds other samples than its scores and stats say: `dali-aesthetic verify {run.folder}`"
        )
    units = [
        Unit(key, start, end, num_rows)
        for (key, start, end), (_, num_rows) in zip(found, counted, strict=True)
    ]
    return KeptSamples(view, units, rows)


def _facts(folder: Path, name: str) -> KeptShard:
    try:
        stats = layout.read_stats(folder, name)
        return KeptShard(name, int(stats["num_kept"]), int(stats["bytes_kept"]))
    except layout.BadStats as error:
        raise RunDamaged(str(error)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunDamaged(f"{folder / layout.stats_file(name)} can't be read: {error!r}") from None


def _samples(view: memoryview) -> Iterator[tuple[str, int, int]]:
    """Key, start and end of each sample. Together they cover the tar up to its end marker."""
    key, start, end = "", 0, 0
    for member in scan_tar(view):
        # A global header belongs to the sample behind it, whose entries it is written with.
        here = _clean(split_name(member.name)[0]) if member.is_file else ""
        if here and here != key:
            if key:
                yield key, start, end
                start = end
            key = here
        if here:
            end = member.next_offset
    if key:
        yield key, start, end


def _clean(key: str) -> str:
    """The key as the scores have it, which are UTF-8."""
    return key.encode("utf-8", "backslashreplace").decode()


def compare(packed: Path, names: Sequence[str], run: Path) -> str:
    """The first difference between the entries of a packed output and those of its run, or ""."""
    kept = [shard.name for shard in read_run(run).shards]
    ours, theirs = _pieces(packed, names), _pieces(run, kept)
    for one, other in zip_longest(_even(ours), _even(theirs), fillvalue=(b"", "")):
        if one[0] != other[0]:
            here, there = one[1] or "its end", other[1] or "its end"
            return f"{packed} differs from {run}: what is in {here} is not what is in {there}"
    return ""


def _pieces(folder: Path, names: Sequence[str]) -> Iterator[tuple[bytes, str]]:
    for name in names:
        path = folder / layout.shard_file(name)
        left = path.stat().st_size - len(layout.TAR_END)
        with path.open("rb") as tar:
            while left > 0 and (piece := tar.read(min(_PIECE, left))):
                left -= len(piece)
                yield piece, path.name


def _even(pieces: Iterator[tuple[bytes, str]]) -> Iterator[tuple[bytes, str]]:
    """The same bytes in pieces of one size, each with the name of the file it ends in."""
    rest, name = b"", ""
    for piece, name in pieces:
        rest += piece
        while len(rest) >= _PIECE:
            yield rest[:_PIECE], name
            rest = rest[_PIECE:]
    if rest:
        yield rest, name
